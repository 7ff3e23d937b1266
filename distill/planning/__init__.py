"""The memory, operations and time of a job, before it runs."""
