"""What was found: rows, their store, metrics, known issues. Imports neither torch nor SciPy."""
