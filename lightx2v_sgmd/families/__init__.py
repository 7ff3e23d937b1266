"""Teacher families: the models that can be distilled, and what differs between them."""
