"""Tests whether counts of smoothing differ by more than chance: Fisher's exact test, and Holm's correction."""

import math
from collections.abc import Sequence

from certbench.core.claims import Guarantee
from certbench.core.evidence import DrawsEvidence, TallyEvidence
from certbench.results.rows import Row


def fisher(a: int, n: int, b: int, m: int) -> float:
    """Return the p-value of Fisher's exact test of a hits in n draws against b in m: twice the smaller tail, at most 1.

    For n = m the distribution is symmetric, and this is the usual two-sided test.
    """
    total, draws = a + b, n + m
    if total in (0, draws):
        return 1.0
    up = a * draws > total * n  # more than expected: away from there the terms fall
    k, term = a, math.exp(_log_choose(n, a) + _log_choose(m, b) - _log_choose(draws, total))
    tail = term
    while term > 1e-17 * tail:  # it is 0 at the end of the range
        if up:
            term *= (n - k) * (total - k) / ((k + 1) * (m - total + k + 1))
        else:
            term *= k * (m - total + k) / ((n - k + 1) * (total - k + 1))
        k += 1 if up else -1
        tail += term
    return min(1.0, 2 * tail)


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    """Say which hypotheses are rejected; one that is true is so with probability at most `level` (Holm, 1979)."""
    rejected = [False] * len(p_values)
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[i] > level / (len(p_values) - rank):
            break
        rejected[i] = True
    return rejected


def p_value(old: Row, new: Row) -> float | None:
    """Return the p-value of "the classes are as probable under noise as before".

    The tested classes are chosen by the sum of both counts, on which Fisher's test conditions. The two-class rule
    bounds the runner-up by its own count, too, so that it takes two tests.

    Returns:
        The p-value; None for rows without counts, or of the same draws.
    """
    before, after = counted(old), counted(new)
    if before is None or after is None or len(before[0]) != len(after[0]) or same_draws(old, new):
        return None
    (a, n), (b, m) = before, after
    top, second = strongest(a, b)
    p, tally = fisher(a[top], n, b[top], m), TallyEvidence.read(new.evidence)
    if tally is None or tally.rule != "two-class":
        return p
    return min(1.0, 2 * min(p, fisher(a[second], n, b[second], m)))


def same_draws(old: Row, new: Row) -> bool:
    """Say whether two rows have the same draws, so that their radii are compared as numbers."""
    return DrawsEvidence.part(old.evidence) == DrawsEvidence.part(new.evidence)


def strongest(before: Sequence[int], after: Sequence[int]) -> tuple[int, int]:
    """Return the two classes with the largest sums of counts."""
    both = [a + b for a, b in zip(before, after, strict=True)]
    first, second, *_ = sorted(range(len(both)), key=lambda c: -both[c])
    return first, second


def counted(row: Row) -> tuple[Sequence[int], int] | None:
    """Return counts of classes and of draws, if the row has both and there are no more votes than draws."""
    tally = TallyEvidence.read(row.evidence)
    if row.guarantee is not Guarantee.PROBABILISTIC or tally is None or tally.n is None:
        return None
    if len(tally.counts) < 2 or min(tally.counts) < 0 or not max(1, sum(tally.counts)) <= tally.n < 2**53:
        return None
    return tally.counts, tally.n


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
