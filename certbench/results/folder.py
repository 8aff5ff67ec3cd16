"""The folder of a run, opened to be read: its manifest and its store. Imports nothing heavy."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from certbench.errors import ConfigError, StoreError
from certbench.files.json_text import parse
from certbench.files.numbers import number
from certbench.results.rows import Estimate, Row
from certbench.results.store import Store

RESULTS = "results.db"
"""Name of the store in the folder of a run."""

MANIFEST = "manifest.json"
"""Name of the file that says what was run, with which versions, on what."""

T = TypeVar("T")


def is_run(folder: Path) -> bool:
    """Say whether this is the folder of a run."""
    return (folder / RESULTS).exists()


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run.

    Attributes:
        path: path of the folder.
        database: name of its store.

    Raises:
        ConfigError: there is no store in it.
    """

    path: Path
    database: str = RESULTS

    def __post_init__(self) -> None:
        if not (self.path / self.database).exists():
            raise ConfigError(f"{self.path} is not the folder of a run: it holds no {RESULTS}")

    def manifest(self, choose: Callable[[Any], T]) -> T:
        """Read the manifest.

        Args:
            choose: function that takes the needed values out of the manifest; it raises if one is missing.

        Raises:
            StoreError: the manifest cannot be read, or lacks a needed value.
        """
        path = self.path / MANIFEST
        try:
            return choose(parse(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise StoreError(f"cannot read {path}: {type(error).__name__}: {error}") from error

    @contextmanager
    def store(self) -> Iterator[Store]:
        """Open the store to read it, and close it at the end.

        Raises:
            StoreError: the store cannot be read.
        """
        store = Store(self.path / self.database, create=False)
        try:
            yield store
        finally:
            store.close()


@dataclass(frozen=True)
class RunResults:
    """The results that a run has so far.

    Attributes:
        manifest: record of the suite, the versions and the machine.
        rows: computed rows, in the order of the suite.
        estimates: guesses beside the attacks, which prove nothing.
        missing: number of rows that have not been computed.
        unattacked: number of inputs of base classifiers whose attacks are not stored, if somebody has counted them.
    """

    manifest: dict[str, Any]
    rows: list[Row]
    estimates: list[Estimate]
    missing: int = 0
    unattacked: int = 0


def read_results(folder: Path) -> RunResults:
    """Read the results of a run.

    Raises:
        ConfigError: this is not the folder of a run.
        StoreError: the run cannot be read.
    """
    opened = RunFolder(folder)

    def whole(manifest: Any) -> dict[str, Any]:
        radii(manifest)
        str(manifest["suite"]["name"])
        return dict(manifest)

    manifest = opened.manifest(whole)
    with opened.store() as store:
        rows = store.rows()
        check_classes(manifest, rows)
        return RunResults(manifest, rows, store.estimates(), store.missing())


def check_classes(manifest: Mapping[str, Any], rows: Iterable[Row]) -> None:
    """Compare the classes in rows with the number of classes of their models, as far as the manifest has it.

    Raises:
        StoreError: a row names a class that its model does not know.
    """
    known = manifest.get("classes")
    counts = known if isinstance(known, Mapping) else {}
    for row in rows:
        count, highest = counts.get(row.model), max(row.prediction, row.label)
        if isinstance(count, int) and highest >= count:
            place = f"the row {row.model}, {row.certifier}, input {row.input}"
            raise StoreError(f"{place} names class {highest}, but the model knows {count} classes")


def radii(manifest: Mapping[str, Any]) -> dict[float, list[float]]:
    """Return for each norm the radii at which the suite asks for certified accuracy.

    Raises:
        ValueError: a norm or a radius is no number that is at least 0.
    """
    found = {number(p): [number(eps) for eps in values] for p, values in manifest["suite"]["radii"].items()}
    if not all(0 <= eps < math.inf for values in found.values() for eps in values):
        raise ValueError("a radius is below 0, or infinite")
    return found
