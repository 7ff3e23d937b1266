"""Wan2.1 text-to-video: its networks, layouts, key maps and samplers."""
