"""A suite becomes rows: what a run is to compute, in which order, and how a stored run is opened again."""
