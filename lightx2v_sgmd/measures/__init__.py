"""Measures of videos and of sets of videos; the README says which."""
