"""Latents to frames, in chunks."""
