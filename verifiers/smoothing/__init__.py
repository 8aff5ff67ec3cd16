"""Smoothed classifiers: votes are counted, their probabilities are bounded, and radii follow."""
