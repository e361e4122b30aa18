"""One module per gate: its observation, its policy, its judge, its controls. No I/O, no clock, no pytest."""
