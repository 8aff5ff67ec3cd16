"""Tests; see conftest.py for what all of them share."""
