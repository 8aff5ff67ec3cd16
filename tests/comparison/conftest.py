"""Fixtures of the tests of comparisons."""

import math
from dataclasses import replace

import pytest

from certbench.comparison import baseline as baselines
from certbench.comparison.side import Side
from tests.support.comparing import row, side


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> dict[str, Side]:
    """Sides in the place of files."""
    rows = [row(radius, input=i) for i, radius in enumerate((0.5, 0.5, 0.5, 0.5, 0.5, 0.0, 0.5))]
    news = [row(radius, input=i) for i, radius in enumerate((0.5, 0.50001, 0.4, 0.0, 0.6, 0.3, math.nan))]
    odd = row(0.25, certifier="x[1]|<b>_*", spec={"name": "x"})
    found = {"old": side(*rows, replace(odd, radius=0.5), name="old"), "new": side(*news, odd, name="new|<i>")}
    found["fine"] = side(*news[:1], name="fine")
    monkeypatch.setattr(baselines, "read", lambda path: found[str(path)])
    return found
