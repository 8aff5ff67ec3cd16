"""The folder of a run is opened once, with one error for each way in which it is none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from certbench.comparison.baseline import read
from certbench.errors import ConfigError, StoreError
from certbench.external.count_files import read as read_counts
from certbench.results.folder import RunFolder, is_run, radii, read_results
from certbench.results.store import Store
from certbench.runs.reopen import reopen

MANIFEST: dict[str, Any] = {
    "suite": {"name": "little", "radii": {"2.0": [0.5]}},
    "models": {},
    "data": {"sha256": ""},
    "versions": {},
}
DOORS = [read_results, read, reopen]
"""Whoever opens a run with its manifest."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run without rows."""
    Store(tmp_path / "run" / "results.db").close()
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(MANIFEST))
    return tmp_path / "run"


def test_a_run_without_rows_is_read(folder: Path) -> None:
    found = read_results(folder)
    assert (found.rows, found.estimates, found.missing) == ([], [], 0)
    assert radii(found.manifest) == {2.0: [0.5]}
    assert is_run(folder) and not is_run(folder.parent)


@pytest.mark.parametrize("door", [*DOORS, read_counts])
def test_a_folder_without_a_store_is_no_run(folder: Path, door: Callable[[Path], object]) -> None:
    (folder / "results.db").unlink()
    with pytest.raises(ConfigError, match=rf"{folder}.*folder of a run"):
        door(folder)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"suite": 3}', "[" * 5_000])
def test_a_damaged_manifest_is_said(folder: Path, door: Callable[[Path], object], text: str | None) -> None:
    (folder / "manifest.json").unlink()
    if text is not None:
        (folder / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=r"cannot read .*manifest\.json: "):
        door(folder)


def test_the_store_is_closed_whatever_happens(folder: Path) -> None:
    with pytest.raises(KeyError), RunFolder(folder).store() as store:
        raise KeyError
    with pytest.raises(StoreError):
        store.rows()
