"""The job: a YAML file, read and checked into one frozen object."""
