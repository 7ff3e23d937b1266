"""Scores of videos by networks."""
