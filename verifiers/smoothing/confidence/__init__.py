"""Confidence bounds of counts, scores and ranks."""
