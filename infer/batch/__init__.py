"""Prompts in, mp4 files out."""
