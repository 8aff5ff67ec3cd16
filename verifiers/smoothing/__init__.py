"""Smoothed classifiers: votes are counted, probabilities bounded, radii follow."""
