"""Programs put together from all of the library and the applications."""
