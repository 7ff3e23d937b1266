"""Decides what a file or folder of weights is, and says it."""
