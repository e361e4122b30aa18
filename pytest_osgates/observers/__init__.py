"""How observations are made: all input and output of the gates stands here, none of the judging."""
