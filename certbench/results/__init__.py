"""The results of a run: rows, their store, metrics, known issues. This room imports neither torch nor SciPy."""
