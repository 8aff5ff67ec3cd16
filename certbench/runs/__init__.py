"""Runs: a suite's plan, its stages, and how a stored run is opened again."""
