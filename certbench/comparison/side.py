"""One side of a comparison: the rows of a run or a baseline, and what they are about. Imports nothing heavy."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from certbench.results.rows import Row

Place = tuple[str, float, tuple[float, float] | None, int]
"""Model, norm, domain and input."""


@dataclass(frozen=True)
class Known:
    """A distance that no certified radius of the base classifier may exceed, and how it is known."""

    distance: float
    source: str


@dataclass(frozen=True)
class Side:
    """One of the two runs, as it was read; see `certbench.comparison.baseline.read`.

    Attributes:
        name: for messages.
        rows: what was computed.
        models: fingerprint of each model, by its name.
        data: fingerprint of the data set.
        known: distances known beside those in the rows.
        uncomputed: rows that were asked for but not computed.
        versions: of packages.
        medians: seconds of benchmarks, by name, if this is a file of pytest-benchmark.
        machine: where they were measured.
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
        """Why rows of a model do not speak of the same thing here and there; empty if they do."""
        pairs = {f"classifier {model}": (self.models.get(model), other.models.get(model))}
        pairs["data set"] = (self.data, other.data)
        for what, (a, b) in pairs.items():
            if not a or not b:
                return f"no fingerprint of the {what} is recorded in {self.name if not a else other.name}"
            if a != b:
                return f"the {what} changed: fingerprint {a[:12]} became {b[:12]}"
        return ""


def merge(a: Mapping[Place, Known], b: Mapping[Place, Known]) -> dict[Place, Known]:
    """The smaller distance at every place."""
    merged = dict(a)
    for place, known in b.items():
        if place not in merged or known.distance < merged[place].distance:
            merged[place] = known
    return merged


def place_of(row: Row) -> Place:
    """Return where a row is."""
    return row.model, row.norm, row.domain, row.input


def spec_text(row: Row) -> str:
    """Return the certifier with all its options, as text."""
    return json.dumps(row.spec or {"name": row.certifier}, sort_keys=True)


def identities(rows: Iterable[Row]) -> list[tuple[str, Place]]:
    """What makes each row another row than the rest: the certifier with its options, and the place."""
    return [(spec_text(row), place_of(row)) for row in rows]
