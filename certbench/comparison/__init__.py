"""The comparison of two runs, row by row; baselines; policies that say which differences count."""
