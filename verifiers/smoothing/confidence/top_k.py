r"""Top-k certificates for Gaussian noise (Jia, Cao, Wang and Gong, 2020).

Within the radius the label stays among the k classes that are most probable under noise, however ties are broken.
"""

import math
from collections.abc import Sequence

from scipy.special import log_ndtr, ndtri

from certbench.verifiers.smoothing.confidence import binomial
from certbench.verifiers.smoothing.noise import gaussian_radius

ROUNDING = 1e-12


def topk_radius(p_lower: float, uppers: Sequence[float], k: int, sigma: float) -> float:
    r"""Return the L2 radius, rounded down; 0 if nothing is proved, infinite if there are only k classes.

    With $p_S$ the sum of the t smallest of the k largest upper bounds (at most 1 - p_lower), it is the largest R over
    t = 1..k that solves $\Phi(\Phi^{-1}(p) - R/\sigma) = \Phi(\Phi^{-1}(p_S) + R/\sigma)/t$ (Theorem 1).

    If the label falls out of the top k at x', there are k others with at least its probability. The t of them with the
    smallest bounds had at most $p_S$ at x, so by Neyman and Pearson at most $\Phi(\Phi^{-1}(p_S) + R/\sigma)$ at x'.
    One of them has at most a t-th of that, while the label has at least $\Phi(\Phi^{-1}(p) - R/\sigma)$. Each t is a
    proof of its own. For k = 1 it is Cohen's two-class radius.

    Args:
        p_lower: lower bound of the label's probability.
        uppers: upper bound of each other class's probability, all of them valid together with `p_lower`.
        k: number of classes that are named.
        sigma: standard deviation of the noise.

    Raises:
        ValueError: bounds that are no probabilities, or k below 1.
    """
    if k < 1 or not all(0 <= p <= 1 for p in (p_lower, *uppers)):
        raise ValueError(f"no top-{k} certificate from bounds {p_lower} and {list(uppers)}")
    largest = sorted(uppers, reverse=True)[:k]
    if len(largest) < k:
        return math.inf
    sums = [min(math.nextafter(math.fsum(largest[k - t :]), math.inf), 1 - p_lower) for t in range(2, k + 1)]
    by_one = gaussian_radius.radius(p_lower, min(largest[-1], 1 - p_lower), sigma)
    return max([by_one, *(sigma * _several(p_lower, rest, t) for t, rest in enumerate(sums, start=2))])


def simultaneous_bounds(counts: Sequence[int], label: int, n: int, alpha: float) -> tuple[float, list[float]]:
    """Bound the label from below and the other classes from above, together at confidence 1 - alpha (SimuEM).

    Clopper and Pearson's bounds at alpha / C each, for C classes. The label must not have been chosen by these counts.
    If it was, the lower bounds of all classes must hold, too; use alpha / 2 in place of alpha for that.

    Args:
        counts: votes of each class.
        label: the class.
        n: number of draws; draws that voted for no class are in no count.
        alpha: probability that one of the bounds is wrong.

    Raises:
        ValueError: the counts or alpha are impossible.
    """
    share = alpha / len(counts)
    uppers = [binomial.upper(count, n, share) for other, count in enumerate(counts) if other != label]
    return binomial.lower(counts[label], n, share), uppers


def _several(p: float, rest: float, t: int) -> float:
    r"""Return the R of t classes that share `rest`, for sigma 1: by bisection, the end where the inequality holds."""
    if p == 0:
        return 0.0
    if p == 1 or rest <= 0:
        return math.inf
    own, others = float(ndtri(p)), float(ndtri(rest))

    def holds(r: float) -> bool:
        left, right = float(log_ndtr(own - r)), float(log_ndtr(others + r)) - math.log(t)
        slack = ROUNDING * (1 + abs(left) + abs(right) + (abs(own) + r) ** 2 + (abs(others) + r) ** 2)
        return left - right > slack

    if not holds(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while holds(high):
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
