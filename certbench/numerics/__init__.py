"""Arithmetic in float64 with its rounding enclosed."""
