"""Room. See README.md."""
