"""A run: processes, signals, checkpoints, failures."""
