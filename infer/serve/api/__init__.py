"""The side that clients see: the HTTP API, its answers and refusals, and the page."""
