"""Architectures of networks, one file per kind."""
