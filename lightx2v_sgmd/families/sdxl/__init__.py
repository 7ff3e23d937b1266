"""Stable Diffusion XL, which makes images with a U-Net."""
