"""Modules, one file per kind."""
