"""Exact answers: mixed-integer programs, branch and bound."""
