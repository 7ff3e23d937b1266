"""The export formats, a file for each program."""
