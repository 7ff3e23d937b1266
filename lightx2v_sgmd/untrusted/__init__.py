"""Readers of what strangers made: model folders, adapters, prompts and jobs. See README.md."""
