"""The export of certificates as files for the checker."""
