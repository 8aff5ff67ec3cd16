"""The audit of our own runs: attacks, contradictions between rows, bounds and counts computed again, rounding."""
