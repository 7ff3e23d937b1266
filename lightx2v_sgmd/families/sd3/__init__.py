"""Stable Diffusion 3: SD3-Medium and SD3.5-Large, which make images."""
