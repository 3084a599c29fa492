"""The command line: every command, and everything that prints to a terminal."""
