"""Float64 arithmetic with enclosed rounding errors, and spectral norms."""
