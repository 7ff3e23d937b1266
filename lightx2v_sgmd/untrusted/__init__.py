"""Readers of files that strangers made: model folders, adapters, prompts and jobs. See README.md."""
