"""Videos on many machines, through Ray."""
