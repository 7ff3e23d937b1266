"""Checks and measures this project on a machine with one GPU; ``python -m tools.gpu_check``."""
