"""One side of a comparison: the rows of a run or a baseline, with their models and data. Imports nothing heavy."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from certbench.core.threat import Domain, Numbers
from certbench.results.rows import Row


@dataclass(frozen=True)
class Scaled:
    """A domain with scales."""

    domain: Domain | None
    scale: Numbers


Place = tuple[str, float, Domain | Scaled | None, int]
"""Place of a row: model, norm, domain and scales, input."""


@dataclass(frozen=True)
class Known:
    """A distance that no certified radius of the base classifier may exceed, and its source."""

    distance: float
    source: str


@dataclass(frozen=True)
class Side:
    """One of the two runs, as it was read; see `certbench.comparison.baseline.read`.

    Attributes:
        name: name of the side in messages.
        rows: computed rows.
        models: fingerprint of each model, by its name.
        data: fingerprint of the data set.
        known: known distances beside those in the rows.
        uncomputed: number of rows that the suite asks for but that have not been computed.
        versions: versions of packages.
        medians: median seconds of benchmarks, by name, if this is a file of pytest-benchmark.
        machine: machine on which they were measured.
    """

    name: str
    rows: Sequence[Row]
    models: Mapping[str, str] = field(default_factory=dict)
    data: str = ""
    known: Mapping[Place, Known] = field(default_factory=dict)
    uncomputed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    medians: Mapping[str, float] = field(default_factory=dict)
    machine: str = ""

    def mismatch(self, other: "Side", model: str) -> str:
        """Say why rows of a model cannot be compared with the other side's; empty if they can."""
        pairs = {f"classifier {model}": (self.models.get(model), other.models.get(model))}
        pairs["data set"] = (self.data, other.data)
        for what, (a, b) in pairs.items():
            if not a or not b:
                return f"no fingerprint of the {what} is recorded in {self.name if not a else other.name}"
            if a != b:
                return f"the {what} changed: fingerprint {a[:12]} became {b[:12]}"
        return ""


def merge(a: Mapping[Place, Known], b: Mapping[Place, Known]) -> dict[Place, Known]:
    """Return the smaller distance at every place."""
    merged = dict(a)
    for place, known in b.items():
        if place not in merged or known.distance < merged[place].distance:
            merged[place] = known
    return merged


def place_of(row: Row) -> Place:
    """Return the place of a row."""
    return row.model, row.norm, row.domain if row.scale is None else Scaled(row.domain, row.scale), row.input


def spec_text(row: Row) -> str:
    """Return the certifier with all its options, as text."""
    return json.dumps(row.spec or {"name": row.certifier}, sort_keys=True)


def identities(rows: Iterable[Row]) -> list[tuple[str, Place]]:
    """Return what tells each row from the others: the certifier with its options, and the place."""
    return [(spec_text(row), place_of(row)) for row in rows]
