"""Runs a job in one or several processes: start, stop, save, resume and report."""
