"""MNIST for tests, from the folder in CERTBENCH_MNIST or beside the published networks; nothing is downloaded."""

import os
from functools import cache
from pathlib import Path

import pytest

from certbench.models import data
from certbench.models.data.base import Dataset
from tests.conftest import SHARED

FOLDER = Path(os.environ.get("CERTBENCH_MNIST") or SHARED / "datasets" / "mnist")


def offer(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a data set readable, or skip the test if it is MNIST and not at hand."""
    if spec == "mnist":
        if not FOLDER.is_dir():
            pytest.skip("MNIST is not at hand; let CERTBENCH_MNIST name its folder")
        monkeypatch.setenv("CERTBENCH_MNIST", str(FOLDER))


@cache
def load(spec: str, split: str = "test") -> Dataset:
    """`data.load`, once per split."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        offer(spec, monkeypatch)
        return data.load(spec, split)
