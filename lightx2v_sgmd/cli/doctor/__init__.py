"""The ``doctor`` command: what this machine has, what it lacks, and the command that adds it."""
