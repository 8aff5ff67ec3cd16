"""Certifiers of one base classifier examine one another, input by input. Imports nothing heavy.

Theorems about radii, of which one violation proves that one of the two sides is wrong:

- a radius exceeds no counterexample, whoever found it: an attack, or a complete certifier on its way to the exact
  answer. One found in the box refutes radii of the same box and of all of R^d; one found in the p-norm refutes radii in
  every larger exponent too, since |d|_inf <= |d|_2 <= |d|_1;
- two certificates of one input name the same class, the base classifier's.

Of any row, also of a smoothed classifier: a radius is a number, at least 0; who abstains has none; and from samples
none is infinite, but where the features that are smoothed do not depend on the input.

Theorems about bounds, which hold for radii as far as the search of the greater side looks (`ORDERS`): a violation says
that a bound is looser than its method promises, or that the smaller one is wrong.

No theorems, and not examined: IBP <= CROWN; Wong-Kolter <= CROWN; LP <= SDP without the LP's cuts; a tighter result
from tighter intermediate bounds, for methods that choose their slopes by them; LipSDP <= product of norms at a solver's
tolerance; and anything between smoothed classifiers, each of which is a function of its own.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from certbench.core.claims import ABSTAIN, Guarantee, Subject
from certbench.core.evidence import LayersEvidence
from certbench.results.rows import Row

Spec = Mapping[str, Any]
Where = tuple[str, int]
"""Model and input."""


@dataclass(frozen=True)
class Order:
    """A theorem: on the same classifier, norm, domain and input the first radius is at most the second."""

    below: Callable[[Spec], bool]
    above: Callable[[Spec], bool]
    why: str


@dataclass(frozen=True)
class Contradiction:
    """Two rows that cannot both be right, or a bound that is looser than a theorem says.

    Attributes:
        row: whose radius is too large, for all that the other says.
        other: the row that contradicts it.
        law: the theorem.
        unsound: whether a claim is refuted; else the other side's bound may just be too loose.
    """

    row: Row
    other: Row
    law: str
    unsound: bool

    def __str__(self) -> str:
        """One sentence."""
        place = f"{self.row.model}, L{self.row.norm:g}, input {self.row.input}"
        if self.other is self.row:
            return f"{place}: {self.row.certifier} ({_says(self.row)}): {self.law}"
        return f"{place}: {self.row.certifier} ({_says(self.row)}) against {self.other.certifier} " + (
            f"({_says(self.other)}): {self.law}"
        )


def _says(row: Row) -> str:
    upper = "" if math.isinf(row.upper) else f", counterexample at {row.upper:.6g}"
    return f"class {row.prediction}, radius {row.radius:.6g}{upper}"


def _named(*names: str, **options: Any) -> Callable[[Spec], bool]:
    return lambda spec: spec.get("name") in names and all(spec.get(key) == value for key, value in options.items())


ORDERS = (
    Order(
        _named("lipschitz", rule="naive"),
        _named("lipschitz", rule="tsuzuku"),
        "|e_i - e_j| is at most twice the norm of one output",
    ),
    Order(_named("lipschitz"), _named("lipschitz", rule="best"), "`best` takes the least of all constants"),
    Order(
        _named("crown"),
        _named("alpha-crown", layers=0),
        "optimised slopes start from CROWN's, over the same intermediate bounds",
    ),
    Order(_named("crown"), _named("lp"), "the LP is the best choice of slopes over intermediate bounds as good"),
    Order(
        _named("alpha-crown", layers=0),
        _named("lp"),
        "the LP is the best choice of slopes over intermediate bounds as good",
    ),
)
"""See the module's text. LP and alpha-CROWN here take their intermediate bounds from `crown`, tightened at most."""


def examine(rows: Iterable[Row]) -> list[Contradiction]:
    """Hold the rows of base classifiers against one another.

    Args:
        rows: of one run, in any order; a model's name stands for one classifier.
    """
    groups: dict[Where, list[Row]] = {}
    findings = []
    for row in rows:
        findings += [Contradiction(row, row, law, True) for law in _broken(row)]
        if row.subject is Subject.BASE and row.prediction != ABSTAIN:
            groups.setdefault((row.model, row.input), []).append(row)
    return findings + [finding for group in groups.values() for finding in _examine(group)]


def _broken(row: Row) -> Iterator[str]:
    """The laws that a row breaks by itself."""
    if not row.radius >= 0:
        yield "a radius is a number, at least 0"
    elif row.prediction == ABSTAIN and row.radius > 0:
        yield "who abstains certifies no radius"
    elif row.guarantee is Guarantee.PROBABILISTIC and math.isinf(row.radius) and not _constant(row):
        yield "samples prove no infinite radius"


def _constant(row: Row) -> bool:
    """Whether noise is added to features that the input does not move."""
    layers = LayersEvidence.read(row.evidence)
    return layers is not None and layers.constant


def _examine(group: list[Row]) -> Iterator[Contradiction]:
    """All rows of one model and input, in all norms and domains."""
    for row in group:
        rivals = [other for other in group if other.upper < math.inf and _refutes(other, row)]
        nearest = min(rivals, key=lambda other: other.upper, default=None)
        if nearest is not None and replace(row, upper=nearest.upper).unsound:
            law = f"a counterexample is known at L{nearest.norm:g} distance {nearest.upper:.6g}"
            yield Contradiction(row, nearest, law, True)
    answered = [row for row in group if row.radius > 0]
    for row in answered[1:]:
        if row.prediction != answered[0].prediction:
            yield Contradiction(row, answered[0], "both certify the class that the classifier itself predicts", True)
    for order in ORDERS:
        for small in filter(lambda row: order.below(row.spec), group):
            for great in filter(lambda row: order.above(row.spec) and row.outcome.answered, group):
                if _comparable(small, great) and _falls_short(great, small):
                    yield Contradiction(small, great, order.why, False)
    for whole in group:
        if whole.spec.get("name") == "best-of" and whole.outcome.answered:
            for part in group:
                if part.spec in whole.spec.get("of", ()) and _same_ball(part, whole) and _falls_short(whole, part):
                    yield Contradiction(part, whole, "the best of several is at least each", False)


def _refutes(other: Row, row: Row) -> bool:
    """Whether a counterexample of one row lies in the set that the other speaks of, at its distance or closer."""
    inside = row.domain is None or row.domain == other.domain
    return inside and (other.norm == row.norm or 0 < other.norm < row.norm)


def _same_ball(a: Row, b: Row) -> bool:
    return a.norm == b.norm and a.domain == b.domain


def _comparable(small: Row, great: Row) -> bool:
    """The same question, and the same network: one in real arithmetic, or the same program."""
    arithmetic = [row.spec.get("rounding_safe", False) for row in (small, great)]
    return small is not great and _same_ball(small, great) and arithmetic[0] == arithmetic[1]


def _falls_short(great: Row, small: Row) -> bool:
    """By more than the greater one's search may leave between its answer and the crossing."""
    search = great.spec.get("search") or {}
    relative = float(search.get("relative", 1e-3)) if search.get("name") != "ladder" else math.inf
    return great.radius < small.radius * (1 - relative) * (1 - 1e-6)
