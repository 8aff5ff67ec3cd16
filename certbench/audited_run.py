"""A stored run as its audit needs it: with its keys, and the model and data at hand, which those keys prove."""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from certbench import benchmark, options, registry
from certbench.attacks import VERSION
from certbench.classifier import Classifier
from certbench.errors import CertbenchError, ConfigError, StoreError
from certbench.rows import Row
from certbench.store import Store
from certbench.suite import Suite, SuiteFile
from certbench.threat import ThreatModel


@dataclass(frozen=True)
class Entry:
    """A row of the run, and the keys under which it and its counterexample are stored."""

    row: Row
    key: str
    attack: str

    @property
    def threat(self) -> ThreatModel:
        """The row's threat model."""
        return ThreatModel(self.row.norm, self.row.domain)


@dataclass(frozen=True, eq=False)
class Proven:
    """A run whose model and data are at hand, which its keys prove.

    Attributes:
        settings: of its suite.
        models: by name.
        inputs: of the data, float64.
        entries: rows to be audited.
        doubtful: rows whose own keys prove nothing, with the reason.
    """

    settings: SuiteFile
    models: Mapping[str, Classifier]
    inputs: Float[Tensor, "n ..."]
    entries: list[Entry]
    doubtful: list[tuple[Entry, str]]


def prove(folder: Path, *, inputs: int | None = None, only: str | None = None) -> Proven:
    """Load a run's model and data, and compare the keys that they give with the stored ones.

    Raises:
        ConfigError: there is no run, nothing to audit, or model or data are others.
        StoreError: it cannot be read.
    """
    if not (folder / "results.db").exists():
        raise ConfigError(f"{folder} is not the folder of a run: there is no results.db in it")
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        settings = SuiteFile.model_validate(manifest["suite"])
        known, sha256 = dict(manifest["models"]), str(manifest["data"]["sha256"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StoreError(f"cannot read {folder / 'manifest.json'}: {type(error).__name__}: {error}") from error
    dataset, models = benchmark.load(Suite(settings, (), (), {}, folder / "manifest.json"))
    prints = {model.name: model.fingerprint() for model in models}
    for name, fingerprint in prints.items():
        if known.get(name) != fingerprint:
            raise ConfigError(
                f"model {name!r} is not the one of this run: its fingerprint is {fingerprint[:12]}, the run's was "
                f"{str(known.get(name))[:12]}; run the suite again, or bring the old weights and code back"
            )
    points = dataset.inputs[: settings.inputs].double()
    digests = benchmark.hashes(points)
    if dataset.fingerprint() != sha256:
        raise ConfigError(f"the data {settings.data!r} are not those of this run; run the suite again")
    entries = _entries(folder)
    if only is not None:
        names = {entry.row.certifier for entry in entries} | {str(entry.row.spec.get("name")) for entry in entries}
        if only not in names:
            raise ConfigError(registry.unknown("certifier of this run", only, sorted(names)), ("only",))
        entries = [entry for entry in entries if only in (entry.row.certifier, entry.row.spec.get("name"))]
    chosen, doubtful = [], []
    for entry in entries:
        row = entry.row
        if inputs is not None and row.input >= inputs:
            continue
        if row.model not in prints or not 0 <= row.input < len(digests):
            raise ConfigError(f"the manifest in {folder} does not know model {row.model!r} or input {row.input}")
        common = (prints[row.model], digests[row.input], entry.threat, settings.seed)
        steps = settings.attacks.steps
        if entry.attack not in [benchmark.attack_key(*common, steps, version) for version in range(1, VERSION + 1)]:
            raise ConfigError(
                f"the results in {folder} were not computed on this model and these data, by their keys "
                f"({row.model}, input {row.input}); run the suite again"
            )
        if entry.key in (benchmark.row_key(*common, row.spec, version) for version in _versions(row.spec)):
            chosen.append(entry)
        else:
            doubtful.append((entry, "by its key, the row is of another model, input or version of the certifier"))
    return Proven(settings, {model.name: model for model in models}, points, chosen, doubtful)


def _versions(spec: Mapping[str, Any]) -> Iterator[int | list[Any]]:
    """Versions that a certifier may have had: today's, if it still exists, and small numbers."""
    with suppress(CertbenchError):
        yield options.versions(options.build(spec))
    yield from range(32)


def _entries(folder: Path) -> list[Entry]:
    store = Store(folder / "results.db")
    try:
        rows = store.rows()
    finally:
        store.close()
    keys = _read(folder, "SELECT p.key, p.attack FROM plan p JOIN results r ON r.key = p.key ORDER BY p.position")
    return [Entry(row, key, attack) for row, (key, attack) in zip(rows, keys, strict=True)]


def points(folder: Path) -> dict[str, tuple[str, bytes]]:
    """The stored counterexamples by key: attack and float64 bytes."""
    found = _read(folder, "SELECT key, attack, point FROM attacks WHERE point IS NOT NULL")
    return {key: (attack, point) for key, attack, point in found}


def _read(folder: Path, query: str) -> list[tuple[Any, ...]]:
    path = folder / "results.db"
    try:
        connection = sqlite3.connect(path.resolve().as_uri() + "?mode=ro", uri=True)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StoreError(f"cannot read {path}: {error}") from error
