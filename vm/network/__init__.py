"""What stands at the other end of the machine's network card: never the host's network."""
