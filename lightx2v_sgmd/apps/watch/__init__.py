"""``lightx2v-sgmd watch``: one live page of a run, read-only."""
