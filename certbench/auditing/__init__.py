"""Is a run of ours right? Attacks, contradictions between rows, bounds and counts computed again, rounding."""
