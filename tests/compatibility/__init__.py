"""Matrix of environments in which the commands are tried."""
