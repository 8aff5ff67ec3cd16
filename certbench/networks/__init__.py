"""Readers of what a module computes: traces, linear maps, ReLU networks."""
