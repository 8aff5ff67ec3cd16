"""Fixtures of the tests of audits."""

from pathlib import Path

import pytest

from certbench.auditing import base_classifiers
from certbench.core import registry
from tests.support.audits import Bench, Overclaiming, Scaled


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for kind in (Scaled, Overclaiming):
        monkeypatch.setitem(registry.table(), kind.__name__.lower(), f"{kind.__module__}:{kind.__name__}")
    monkeypatch.setattr(base_classifiers, "ROUNDS", 2)
    return Bench(tmp_path)
