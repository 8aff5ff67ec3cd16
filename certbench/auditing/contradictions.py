"""Contradictions between the certificates of one base classifier, found input by input.

Some theorems are about a single radius or prediction. One violation proves that one of the two sides is wrong:

- no radius exceeds the distance of a counterexample, whether an attack found it, or a complete certifier on its way to
  the exact answer. A counterexample in a box refutes radii in each box that holds it and in all of R^d; one in the
  p-norm also refutes radii in every norm with a larger exponent, since |d|_inf <= |d|_2 <= |d|_1;
- two certificates of one input name the same class, the base classifier's.

Some laws are about any row, also of a smoothed classifier: a radius is a number, at least 0; an abstention has no
radius; samples prove no infinite radius, unless the smoothed features do not depend on the input.

Other theorems order the radii of two certifiers, as far as the search of the better one looks. Each certifier knows its
own, with the proof (`Certifier.dominates`). A violation says that a bound is looser than its method promises, or that
the other radius is too large.

An order of bounds over one ball is not an order of radii: bounds need not fall as the ball grows, and two searches look
at different balls. For example, CROWN's slopes jump from 0 to 1 as the ball grows, and so do all bounds that build on
them. So these orders are not examined: CROWN <= alpha-CROWN <= LP <= the LP with tighter bounds of hidden layers; IBP
<= CROWN; Wong-Kolter <= CROWN; LP <= SDP; LipSDP <= product of norms at a solver's tolerance. (Even over one ball they
may fail: alpha-CROWN compares slopes in float32, and if the LP's solver fails, CROWN's slopes remain.) No order is
known between smoothed classifiers, since each of them is another function.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from certbench.core import options
from certbench.core.certifier import Certifier
from certbench.core.claims import ABSTAIN, Guarantee, Subject
from certbench.core.evidence import LayersEvidence
from certbench.core.threat import holds
from certbench.errors import CertbenchError
from certbench.results.rows import Row

Where = tuple[str, int]
"""Place of an input: model and index."""

ROUNDING = 1e-6
"""Share of a radius by which rounding may break an order: a judgement, far above what was seen."""


@dataclass(frozen=True)
class Contradiction:
    """Two rows that cannot both be right, or a bound that is looser than a theorem says.

    Attributes:
        row: the row whose radius is too large, if the other one is right.
        other: the row that contradicts it.
        law: the theorem.
        unsound: whether a claim is refuted; if not, the other row's bound may only be too loose.
    """

    row: Row
    other: Row
    law: str
    unsound: bool

    def __str__(self) -> str:
        """Return one sentence with the rows and the theorem."""
        place = f"{self.row.model}, L{self.row.norm:g}, input {self.row.input}"
        if self.other is self.row:
            return f"{place}: {self.row.certifier} ({_says(self.row)}): {self.law}"
        return f"{place}: {self.row.certifier} ({_says(self.row)}) against {self.other.certifier} " + (
            f"({_says(self.other)}): {self.law}"
        )


def _says(row: Row) -> str:
    upper = "" if math.isinf(row.upper) else f", counterexample at {row.upper:.6g}"
    return f"class {row.prediction}, radius {row.radius:.6g}{upper}"


def examine(rows: Iterable[Row]) -> list[Contradiction]:
    """Find contradictions in the rows of a run.

    Args:
        rows: rows of one run, in any order; a model's name stands for one classifier.
    """
    groups: dict[Where, list[Row]] = {}
    findings = []
    for row in rows:
        findings += [Contradiction(row, row, law, True) for law in _broken(row)]
        if row.subject is Subject.BASE:
            groups.setdefault((row.model, row.input), []).append(row)
    orders = _Orders()
    return findings + [finding for group in groups.values() for finding in _examine(group, orders)]


def _broken(row: Row) -> Iterator[str]:
    """Yield the laws that a row breaks by itself."""
    if not row.radius >= 0:
        yield "a radius is a number, at least 0"
    elif row.prediction == ABSTAIN and row.radius > 0:
        yield "an abstention certifies no radius"
    elif row.guarantee is Guarantee.PROBABILISTIC and math.isinf(row.radius) and not _constant(row):
        yield "samples prove no infinite radius"


def _constant(row: Row) -> bool:
    """Say whether noise is added to features that do not depend on the input."""
    layers = LayersEvidence.read(row.evidence)
    return layers is not None and layers.constant


def _examine(group: list[Row], orders: "_Orders") -> Iterator[Contradiction]:
    """Yield the contradictions between all rows of one model and input, in all norms and domains."""
    attacked = [row for row in group if row.upper < math.inf]  # also rows without an answer
    group = [row for row in group if row.prediction != ABSTAIN]
    for row in group:
        rivals = [other for other in attacked if _refutes(other, row)]
        nearest = min(rivals, key=lambda other: other.upper, default=None)
        if nearest is not None and replace(row, upper=nearest.upper).unsound:
            known = f"a counterexample is known at L{nearest.norm:g} distance {nearest.upper:.6g}"
            yield Contradiction(row, nearest, known, True)
    answered = [row for row in group if row.radius > 0]
    for row in answered[1:]:
        if row.prediction != answered[0].prediction:
            yield Contradiction(row, answered[0], "both certify the class that the classifier itself predicts", True)
    for great in filter(lambda row: row.outcome.answered, group):
        for small in group:
            law = orders.broken(great, small) if small is not great and _same_ball(small, great) else None
            if law is not None:
                yield Contradiction(small, great, law, False)


class _Orders:
    """The orders that the certifiers of a run state; each certifier is built once."""

    def __init__(self) -> None:
        self.built: dict[str, Certifier[Any] | None] = {}
        self.laws: dict[tuple[str, str], str | None] = {}

    def broken(self, great: Row, small: Row) -> str | None:
        """Return the theorem, if there is one, by which the first row's radius must not be below the second's."""
        if not great.radius < small.radius:
            return None
        key = _text(great.spec), _text(small.spec)
        better, other = (self.certifier(text) for text in key)
        if better is None or other is None:
            return None
        if key not in self.laws:
            self.laws[key] = better.dominates(other)
        short = better.attainable(great.radius, great.evidence) < small.radius * (1 - ROUNDING)
        return self.laws[key] if short else None

    def certifier(self, text: str) -> Certifier[Any] | None:
        """Return the certifier of a specification; None if it cannot be built here."""
        if text not in self.built:
            try:
                self.built[text] = options.build(json.loads(text))
            except CertbenchError:
                self.built[text] = None
        return self.built[text]


def _text(spec: Mapping[str, Any]) -> str:
    return json.dumps(spec, sort_keys=True)


def _refutes(other: Row, row: Row) -> bool:
    """Say whether a counterexample of one row counts for the other: it is in its domain, and no farther in its norm."""
    inside = row.scale == other.scale and holds(row.domain, other.domain)
    return inside and (other.norm == row.norm or 0 < other.norm < row.norm)


def _same_ball(a: Row, b: Row) -> bool:
    return a.norm == b.norm and a.domain == b.domain and a.scale == b.scale
