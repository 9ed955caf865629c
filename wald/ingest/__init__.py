"""The writing process: one loop from the socket to the log, whose only writer it is."""
