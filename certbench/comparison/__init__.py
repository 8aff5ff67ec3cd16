"""Two runs, compared row by row; baselines; policies that say which differences count."""
