"""Programs for developers, not installed: benchmarks, checks, how the bundled teacher was made."""
