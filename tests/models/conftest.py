"""Fixtures of the tests of models."""

import pytest

from certbench.models import data
from certbench.models.data.base import Dataset


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """The test inputs of `digits`."""
    return data.load("digits")
