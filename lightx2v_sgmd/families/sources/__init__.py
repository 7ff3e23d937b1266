"""Finds the parts of a model, and reads its small files."""
