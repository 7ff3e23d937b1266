"""Teacher families: how each is opened, run and decoded."""
