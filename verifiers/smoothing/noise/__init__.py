"""Distributions of noise, each with the radius that it certifies."""
