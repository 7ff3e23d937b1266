"""The commands that are not in cli.py itself: one module each."""
