"""The command line: composition, one file per command."""
