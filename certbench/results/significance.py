"""Whether counts of smoothing differ by more than chance: Fisher's exact test, and Holm's correction."""

import math
from collections.abc import Sequence

from certbench.core.claims import Guarantee
from certbench.core.evidence import DrawsEvidence, TallyEvidence
from certbench.results.rows import Row


def fisher(a: int, n: int, b: int, m: int) -> float:
    """Fisher's exact test of a hits in n draws against b in m: twice the smaller tail, at most 1.

    For n = m, where the distribution is symmetric, that is the usual two-sided test.
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
    """Which hypotheses fall, with probability at most `level` that a true one does (Holm, 1979)."""
    rejected = [False] * len(p_values)
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[i] > level / (len(p_values) - rank):
            break
        rejected[i] = True
    return rejected


def p_value(old: Row, new: Row) -> float | None:
    """Of "the classes are as probable under noise as before"; None for rows without counts, or of the same draws.

    Which classes are tested is read off the sum of both counts, on which Fisher's test conditions. The rule that bounds
    the runner-up by its own count depends on that too, and so there are two tests.
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
    """Whether nothing random stands between two rows, so that their radii are compared as numbers."""
    return DrawsEvidence.part(old.evidence) == DrawsEvidence.part(new.evidence)


def strongest(before: Sequence[int], after: Sequence[int]) -> tuple[int, int]:
    """The two classes with the largest counts, taken together."""
    both = [a + b for a, b in zip(before, after, strict=True)]
    first, second, *_ = sorted(range(len(both)), key=lambda c: -both[c])
    return first, second


def counted(row: Row) -> tuple[Sequence[int], int] | None:
    """Counts of classes and of draws, if the row has them: whole numbers, of which at most all draws are votes."""
    tally = TallyEvidence.read(row.evidence)
    if row.guarantee is not Guarantee.PROBABILISTIC or tally is None or tally.n is None:
        return None
    if len(tally.counts) < 2 or min(tally.counts) < 0 or not max(1, sum(tally.counts)) <= tally.n < 2**53:
        return None
    return tally.counts, tally.n


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
