"""CogVideoX text-to-video: its networks, sizes, noise schedule and stock pipeline."""
