"""Benchmarks of training, generation, decoding and export."""
