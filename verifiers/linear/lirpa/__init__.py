"""auto-LiRPA as an engine."""
