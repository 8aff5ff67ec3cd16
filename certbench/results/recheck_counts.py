"""Rows of smoothed classifiers against their own counts, by the independent checker. Imports nothing heavy.

What is re-checked: counts of noise at the input, of the families that `certbench.checker.counts` knows. That the
counts are those of independent draws is taken for granted, as there.
"""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from certbench.core.claims import ABSTAIN, Guarantee, Subject
from certbench.results.rows import Row

if TYPE_CHECKING:
    from certbench.checker.reading import Claim

BESIDE = frozenset({"stream", "precision", "compiled", "won", "refused"})
"""Evidence of how the draws were made and what else was tried: no radius depends on it."""

SAMPLED = frozenset({"counts", "selection", "n", "alpha", "rule", "p_lower", "p_upper", "seed"})
NOISY = SAMPLED | {"noise", "sigma", "scale", "dimension"}
KNOWN = (NOISY, NOISY | {"shared"}, SAMPLED | {"lam"})
"""The names of evidence that can be re-checked."""

STEPS = 60
"""Of Newton's method, of which a bound that is right needs none."""


def wrong(row: Row, point: Sequence[float] | None = None) -> str | None:
    """Why a smoothed row's radius or class is not what its own counts prove.

    Args:
        row: of a run; baselines do not keep all of the evidence.
        point: the input, flat, on which radii of uniform noise in a domain depend; they are not re-checked without it.

    Returns:
        None if the row is fine, claims nothing, or cannot be re-checked.
    """
    from certbench.checker import counts
    from certbench.checker.reading import Refused, Unreadable

    claim = _claim(row, point)
    if claim is None or (row.radius == 0 and row.prediction == ABSTAIN):
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
    """The largest radius that a row's counts prove for the class of its selection, whatever its own bounds are.

    It is right but for rounding, and 0 where the counts prove nothing.

    Returns:
        None where it cannot be re-checked (see `wrong`), or the evidence contradicts itself.
    """
    from certbench.checker import counts
    from certbench.checker.reading import Refused, Unreadable

    claim = _claim(row, point)
    if claim is None:
        return None
    try:
        evidence = _evidence(row)
        found = counts.read_votes(evidence)
        low = high = _bound(found.votes, found.n, found.share, _float(evidence["p_lower"]))
        if found.rule == "two-class":
            high = _bound(found.n - found.rivals, found.n, found.share, 1 - _float(evidence["p_upper"]))
        high = max(counts.SMALLEST, min(1 - high, 1 - low))
        if not high < min(low, counts.HALF):
            return 0.0
        return max(0.0, float(counts.largest(claim, evidence, low, high)))
    except (Refused, Unreadable):
        return None


def _evidence(row: Row) -> dict[str, Any]:
    """As a certificate file has it."""
    return {"kind": "counts", **{name: value for name, value in row.evidence.items() if name not in BESIDE}}


def _claim(row: Row, point: Sequence[float] | None) -> "Claim | None":
    """What a certificate file would claim; None where the counts are not all that the radius depends on."""
    import numpy as np

    from certbench.checker.counts import LARGEST, NOISES
    from certbench.checker.reading import NORMS, Claim

    evidence = row.evidence
    probable = row.subject is Subject.SMOOTHED and row.guarantee is Guarantee.PROBABILISTIC
    if not probable or evidence.keys() - BESIDE not in KNOWN or row.norm not in NORMS.values():
        return None
    noise = evidence.get("noise")
    name = noise.get("name") if isinstance(noise, Mapping) else None
    if noise is not None and (name not in NOISES or (name == "uniform" and row.domain is not None and point is None)):
        return None
    d = evidence.get("dimension", 1)  # of splitting noise no more than rounding depends on it
    if point is None and not (isinstance(d, int) and 0 < d <= LARGEST):
        return None
    x = np.zeros(d) if point is None else np.asarray(point, dtype=np.float64).ravel()
    return Claim(x, row.norm, row.domain, row.prediction, row.radius, "smoothed", "probabilistic")


def _bound(k: int, n: int, share: Decimal, stated: float) -> Fraction:
    r"""The p for which P[Bin(n, p) >= k] is `share`, by Newton's method; 0 for k = 0.

    In log p, the logarithm of the tail is concave, of slope k P[Bin(n, p) = k] / P[Bin(n, p) >= k]: from the second
    step on, p is too small and grows. Where the bound that is stated is right, nothing is left to do.
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


def _float(value: Any) -> float:
    return value if isinstance(value, float) else math.nan
