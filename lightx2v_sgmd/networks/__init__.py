"""Parts of networks that no family owns: adapters, attention, checkpointing, compiled blocks."""
