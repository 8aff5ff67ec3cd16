"""Counterexamples, and estimates that prove nothing."""
