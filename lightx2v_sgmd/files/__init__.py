"""Readers and writers of files: weights, checkpoints, prompts, videos and YAML. See README.md."""
