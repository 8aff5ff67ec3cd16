"""The folder of a run is opened once, with one error for each way in which it is none."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from certbench.comparison.baseline import read
from certbench.core.claims import Guarantee, Outcome, Subject
from certbench.errors import ConfigError, StoreError
from certbench.external.count_files import read as read_counts
from certbench.results.folder import RunFolder, is_run, radii, read_results
from certbench.results.store import Planned, Store, StoredAnswer
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


def test_a_class_that_the_model_does_not_know_is_refused(folder: Path) -> None:
    planned = Planned("key", "", "net", "crown", {"name": "crown"}, Guarantee.SOUND, Subject.BASE, 2.0, None, 0, 3)
    store = Store(folder / "results.db")
    store.plan([planned])
    store.put([StoredAnswer("key", 9, 0.5, math.inf, 0.0, 0.0, Outcome.COMPLETED, "", {})])
    store.close()
    for classes, fits in (({"net": 10}, True), ({"other": 9}, True), ({"net": 9}, False)):
        (folder / "manifest.json").write_text(json.dumps(MANIFEST | {"classes": classes}))
        for door in (read_results, read):
            if fits:
                door(folder)
            else:
                with pytest.raises(StoreError, match="names class 9, but the model knows 9 classes"):
                    door(folder)


@pytest.mark.parametrize("eps", ["NaN", "-1", '"inf"', "true", "1" * 400])
def test_radii_that_are_none_are_refused(folder: Path, eps: str) -> None:
    text = json.dumps(MANIFEST).replace("[0.5]", f"[{eps}]")
    (folder / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=r"manifest\.json"):
        read_results(folder)
