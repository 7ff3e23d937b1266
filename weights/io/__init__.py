"""Tensors in and out, one by one."""
