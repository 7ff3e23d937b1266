"""Where the parts of a model are, and what its small files state."""
