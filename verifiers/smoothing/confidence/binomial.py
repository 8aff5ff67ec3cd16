"""Confidence bounds for a binomial proportion (Clopper and Pearson, 1934), rounded outward."""

import math

from scipy.stats import beta, binom, binomtest


def lower(successes: int, trials: int, alpha: float) -> float:
    """Return the largest p that is rejected: with confidence 1 - alpha, one-sided, the proportion lies above it.

    It is rounded down until P[Bin(trials, p) >= successes] <= alpha holds with room for the error of its evaluation.

    Raises:
        ValueError: the counts or alpha are impossible.
    """
    _check(successes, trials, alpha)
    if successes == 0:
        return 0.0
    bound = float(beta.ppf(alpha, successes, trials - successes + 1))
    step = 2.0**-52
    while not binom.sf(successes - 1, trials, bound) <= alpha * (1 - 1e-10):
        bound, step = bound * (1 - step), 2 * step
    return bound


def upper(successes: int, trials: int, alpha: float) -> float:
    """Return the mirror image of `lower`: with confidence 1 - alpha, one-sided, the proportion lies below it.

    It is rounded up until P[Bin(trials, p) <= successes] <= alpha holds with room for the error of its evaluation.

    Raises:
        ValueError: the counts or alpha are impossible.
    """
    _check(successes, trials, alpha)
    if successes == trials:
        return 1.0
    bound = float(beta.ppf(1 - alpha, successes + 1, trials - successes))
    step = 2.0**-52
    while not binom.cdf(successes, trials, bound) <= alpha * (1 - 1e-10):
        bound, step = min(1.0, bound + step * (1 + bound)), 2 * step
        if bound == 1.0:
            break
    return bound


def even_chance(first: int, second: int) -> float:
    """Return the two-sided p-value of "both are equally likely" given their counts (Hung and Fithian, 2016)."""
    return float(binomtest(first, first + second, 0.5).pvalue) if first + second else 1.0


def _check(successes: int, trials: int, alpha: float) -> None:
    if not (0 <= successes <= trials and trials > 0 and 0 < alpha < 1 and math.isfinite(alpha)):
        raise ValueError(f"no confidence bound for {successes} of {trials} at alpha {alpha}")
