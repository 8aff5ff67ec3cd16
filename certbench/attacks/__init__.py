"""Searches for counterexamples, and estimates that prove nothing."""
