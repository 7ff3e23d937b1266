"""Fuzzing of the parsers of strangers' files."""
