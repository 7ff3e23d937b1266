"""Helpers for the machine and the Python environment: errors, console, compilers, packages."""
