"""The command `export-certificates`."""

import sqlite3
from pathlib import Path

import pytest

from certbench.exit_codes import ExitCode
from tests.cli.conftest import FOLDER, Run, write


def test_files_are_written_and_what_has_none_is_said(certbench: Run) -> None:
    write(certifiers=["crown", {"name": "fake", "radius": 0.01}])
    certbench("run", "little.yaml")
    code, out, _ = certbench("export-certificates", str(FOLDER), "--out", "files [1]", "--certifier", "crown")
    assert (code, out.splitlines()[0]) == (ExitCode.OK, "3 certificates written to files [1]")
    assert len([*Path("files [1]").glob("plane-*.json")]) == 3
    code, out, _ = certbench("export-certificates", str(FOLDER), "--out", "files [1]")
    assert code == ExitCode.INCOMPLETE
    assert "3 not written: fake(radius=0.01) on plane, L2: fake(radius=0.01) has no evidence" in out
    code, _, err = certbench("export-certificates", str(FOLDER), "--out", "files", "--model", "other")
    assert code == ExitCode.USAGE and "no row with a radius" in err


@pytest.mark.parametrize("change", ["radius = 9e999", """evidence = '{"kind": NaN, "counts": [1e999]}'"""])
def test_numbers_that_no_file_may_hold_are_refused(certbench: Run, change: str) -> None:
    write(certifiers=["crown", {"name": "smoothing", "n": 100}])
    certbench("run", "little.yaml")
    connection = sqlite3.connect(FOLDER / "results.db")
    with connection:
        connection.execute(f"UPDATE results SET {change} WHERE radius > 0")
    connection.close()
    code, out, _ = certbench("export-certificates", str(FOLDER), "--out", "files")
    assert code == ExitCode.INCOMPLETE and ("its radius is infinite" in out or "infinite or NaN" in out)
