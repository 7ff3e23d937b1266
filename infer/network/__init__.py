"""The transformer, loaded and made fast."""
