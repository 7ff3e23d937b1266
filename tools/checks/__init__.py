"""Programs that look for faults."""
