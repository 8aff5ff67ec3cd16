"""Certificates as files, for the checker."""
