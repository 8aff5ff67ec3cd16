"""The progress of a run fits a terminal of 80 columns, and says how much time is left."""

import io

import pytest
from rich.console import Console

from certbench.cli import console
from certbench.cli.progress import ProgressWatcher, lasting


def test_numbers_and_time_are_whole_on_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.err, "_force_terminal", True)
    watcher = ProgressWatcher()
    watcher.begin(12_000, 3)
    watcher.now("smoothing(noise=laplace, n=2000, rule=one-vs-rest) on mlp-gaussian, Linf")
    watcher.advance({"completed": 7_000, "limited": 20, "timed out": 300, "attacked": 400})
    for seconds, words in ((None, ""), (754.0, "13 min left")):
        watcher.left(seconds)
        shown = io.StringIO()
        Console(file=shown, width=80, force_terminal=False).print(watcher.bar.get_renderable())
        (line,) = shown.getvalue().splitlines()
        assert "7723/12000" in line and words in line and "0:00:00" in line and len(line) <= 80
        assert line.startswith("smoothing(") and "7000" in line


def test_a_time_has_no_more_figures_than_are_known() -> None:
    assert lasting(0.3) == "under 1 s"
    assert [lasting(time) for time in (40.2, 119.0, 754.0, 9_000.0)] == ["40 s", "119 s", "13 min", "2.5 h"]
    assert [lasting(time) for time in (200_000.0, 1e8)] == ["2.3 days", "1,157 days"]
