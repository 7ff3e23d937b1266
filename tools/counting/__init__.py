"""Costs that can be counted without a GPU."""
