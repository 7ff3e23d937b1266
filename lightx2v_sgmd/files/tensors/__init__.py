"""Reads and writes tensors in files: safetensors and PyTorch's."""
