"""Fixtures of the tests of runs."""

from pathlib import Path

import pytest

from certbench.core import registry
from tests.support.runs import Bench, Fake, Unwritable


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for kind in (Fake, Unwritable):
        monkeypatch.setitem(registry.table(), kind.__name__.lower(), f"{kind.__module__}:{kind.__name__}")
    return Bench(tmp_path)
