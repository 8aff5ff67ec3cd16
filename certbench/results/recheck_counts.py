"""Checks of smoothed rows against their own counts, by the independent checker. Imports nothing heavy.

Rows are re-checked if their noise is at the input, of a family that `certbench.checker.counts` knows. Both assume
that the counts are those of independent draws.
"""

import math
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from certbench.core.claims import ABSTAIN, Guarantee, Subject
from certbench.core.evidence import (
    BestOfEvidence,
    DomainEvidence,
    DrawingEvidence,
    HeadEvidence,
    NoiseEvidence,
    SplittingEvidence,
    VoteEvidence,
)
from certbench.errors import StoreError
from certbench.results.rows import Row

if TYPE_CHECKING:
    from certbench.checker.reading import Claim

BESIDE = DrawingEvidence.keys() | BestOfEvidence.keys() | DomainEvidence.keys() | HeadEvidence.keys()
"""Keys of evidence that are about no counts: how the draws were made, what else was tried, where the domain ends, and
which last layer was left out."""

STEPS = 60
"""Maximum number of Newton steps. A correct bound needs none."""


def wrong(row: Row, point: Sequence[float] | None = None) -> str | None:
    """Say why a smoothed row's own counts do not prove its radius or class.

    Args:
        row: row of a run; baselines do not keep all of the evidence.
        point: the input, flat; radii of uniform noise in a domain depend on it, and are not re-checked without it.

    Returns:
        The reason; None if the row is right, claims nothing, or cannot be re-checked.
    """
    from certbench.checker import counts
    from certbench.checker.reading import Refused, Unreadable

    if row.radius == 0 and row.prediction == ABSTAIN:
        return None
    try:
        claim = _claim(row, point)
    except StoreError as error:
        return str(error)
    if claim is None:
        return None
    if not 0 <= row.radius < math.inf:
        return f"the radius is {row.radius:g}"
    if row.prediction == ABSTAIN:
        return f"it abstains, but with the radius {row.radius:g}"
    try:
        if row.radius == 0:
            top = counts.read_votes(_evidence(row)).top
            return None if row.prediction == top else f"the draws of the selection name class {top}"
        return counts.check(claim, _evidence(row), None)
    except (Refused, Unreadable) as error:
        return str(error)


def largest(row: Row, point: Sequence[float] | None = None) -> float | None:
    """Return the largest radius that a row's counts prove for its selected class, whatever its own bounds are.

    It does not exceed the domain, where the row says that the whole of it is certified.

    Returns:
        The radius, exact but for rounding, and 0 if the counts prove nothing; None if the row cannot be
        re-checked (see `wrong`), or the evidence contradicts itself.
    """
    from certbench.checker import counts
    from certbench.checker.reading import Refused, Unreadable

    try:
        claim = _claim(row, point)
        if claim is None:
            return None
        evidence = _evidence(row)
        found = counts.read_votes(evidence)
        stated = VoteEvidence.from_json(row.evidence)
        low = high = _bound(found.votes, found.n, found.share, stated.p_lower)
        if found.rule == "two-class":
            high = _bound(found.n - found.rivals, found.n, found.share, 1 - stated.p_upper)
        high = max(counts.SMALLEST, min(1 - high, 1 - low))
        if not high < min(low, counts.HALF):
            return 0.0
        whole = DomainEvidence.read(row.evidence)
        end = math.inf if whole is None else whole.farthest
        return min(max(0.0, float(counts.largest(claim, evidence, low, high))), end)
    except (Refused, Unreadable, StoreError):
        return None


def _evidence(row: Row) -> dict[str, Any]:
    """Return the evidence as a certificate file has it."""
    return {"kind": "counts", **{name: value for name, value in row.evidence.items() if name not in BESIDE}}


def _claim(row: Row, point: Sequence[float] | None) -> "Claim | None":
    """Return the claim of a certificate file; None if the radius depends on more than the counts.

    Raises:
        StoreError: the evidence has the right keys with wrong values.
    """
    import numpy as np

    from certbench.checker.counts import LARGEST, NOISES
    from certbench.checker.reading import NORMS, Claim

    probable = row.subject is Subject.SMOOTHED and row.guarantee is Guarantee.PROBABILISTIC
    if not probable or row.norm not in NORMS.values():
        return None
    keys, d = row.evidence.keys() - BESIDE, 1  # under splitting noise only rounding depends on the dimension
    if NoiseEvidence.exactly(keys):
        found = NoiseEvidence.from_json(row.evidence)
        name, d = found.noise.get("name"), found.dimension
        known = point is not None and _range(row) is not None
        if name not in NOISES or (name == "uniform" and row.domain is not None and not known):
            return None  # the radius depends on the input and on the domain, which the checker knows as one range
    elif not SplittingEvidence.exactly(keys):
        return None
    if point is None and not 0 < d <= LARGEST:
        return None
    x = np.zeros(d) if point is None or row.scale is not None else np.asarray(point, dtype=np.float64).ravel()
    return Claim(x, row.norm, _range(row), row.prediction, row.radius, "smoothed", "probabilistic")


def _range(row: Row) -> tuple[float, float] | None:
    """Return the one range of all coordinates, if the domain is that and there are no scales."""
    low, high = row.domain or (None, None)
    return (low, high) if isinstance(low, float) and isinstance(high, float) and row.scale is None else None


def _bound(k: int, n: int, share: Decimal, stated: float) -> Fraction:
    r"""Return the p for which P[Bin(n, p) >= k] is `share`, by Newton's method; 0 for k = 0.

    In log p, the logarithm of the tail is concave, with slope k P[Bin(n, p) = k] / P[Bin(n, p) >= k]: from the second
    step on, p is too small and grows. If the stated bound is right, nothing is left to do.
    """
    from certbench.checker.counts import tail

    if k == 0:
        return Fraction(0)
    wanted, choose = float(share.ln()), math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    p = min(stated if stated > 1e-6 else 1.0, k / n, math.nextafter(1, 0))
    for _ in range(STEPS):
        found = float(tail(k, n, Fraction(p)).ln())
        slope = k * math.exp(choose + k * math.log(p) + (n - k) * math.log1p(-p) - found)
        step = (wanted - found) / slope
        p *= math.exp(step)
        if abs(step) < 1e-11:
            break
    return Fraction(p)
