"""The sprite world: captions, videos that fit them, and the measuring of both (see ``world``)."""
