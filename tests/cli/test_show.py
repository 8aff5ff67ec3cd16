"""The commands `show` and `report`: runs and other things by their names."""

import re
from pathlib import Path

import pytest

from certbench.exit_codes import ExitCode
from tests.cli.conftest import FOLDER, Run


def test_what_was_run_can_be_shown_and_reported_again(certbench: Run) -> None:
    certbench("run", "little.yaml", "--out", "here [1]")
    assert (certbench("show", "here [1]")[0], certbench("validate", "little.yaml")[0]) == (0, 0)
    (Path("here [1]") / "report.html").unlink()
    code, out, _ = certbench("report", "here [1]", "--markdown")
    assert code == 0
    assert "| " in out
    assert "Report: here [1]/report.html" in out
    assert (Path("here [1]") / "report.html").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"suite": 3}', '{"suite": {"radii": {"two": []}}}'])
def test_a_damaged_manifest_is_said(certbench: Run, text: str) -> None:
    certbench("run", "little.yaml")
    (FOLDER / "manifest.json").write_text(text)
    code, _, err = certbench("show", str(FOLDER))
    assert code == ExitCode.STORE
    assert "manifest.json" in err


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        ("crown", ["crown: sound, certifies the base classifier, L1, L2, Linf", "search", "secant"]),
        ("smoothing", ["probabilistic", "smoothed", "noise", "gaussian", "0.25", "two-class"]),
        ("mlp-plain", ['"sha256"', '"architecture": "mlp"']),
        ("default", ["name: default", "certifiers:"]),
    ],
)
def test_things_are_shown_by_their_name(certbench: Run, thing: str, words: list[str]) -> None:
    code, out, _ = certbench("show", thing)
    assert code == 0
    assert [word for word in words if word not in out] == []


@pytest.mark.parametrize("name", ["milp", "smoothing", "sdp", "best-of"])
def test_options_are_shown_with_their_ranges_at_80_columns(
    certbench: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = certbench("show", name)
    table = out[out.index("\noption ") :].splitlines()
    assert code == 0 and max(map(len, table)) <= 80 and "\u2026" not in out
    cells = [re.split(r"\s{2,}", line.strip()) for line in table]
    if name == "milp":
        assert ["seconds", "number, above 0, finite", "60"] in cells
        assert ["eps", "number, above 0, finite, or null", "null"] in cells
    if name == "smoothing":
        assert ["pareto.a", "number, above 2, at most 1000", "3"] in cells
