"""Certifiers with auto-LiRPA as their engine."""
