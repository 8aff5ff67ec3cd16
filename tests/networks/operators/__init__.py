"""Tests of the tables of operators."""
