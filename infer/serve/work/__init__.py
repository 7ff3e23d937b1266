"""The processes that own the device, and make the videos of the queue."""
