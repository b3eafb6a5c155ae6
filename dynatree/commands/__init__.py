"""The command line: each command is a module that adds itself to the parser with `register`."""
