r"""Confidence statements beyond Clopper and Pearson's: means of scores in [0, 1], and bounds that hold at every time.

`binomial` has the exact bounds for a proportion that is estimated from a fixed number of draws. This module has, for
scores between 0 and 1, Hoeffding's two inequalities (1963) and the empirical Bernstein bound (Maurer and Pontil, 2009).
It also has a confidence sequence for a proportion (Ville, 1939; Robbins, 1970), with which smoothing stops early
(Voráček, 2024). Everything is one-sided and rounded outward.
"""

import math
from collections.abc import Callable

from scipy.special import betaln

ROUNDING = 1e-12
"""Error allowed to each evaluation, relative to the largest of its terms."""


def hoeffding_lower(mean: float, n: int, alpha: float) -> float:
    r"""Return $\bar p - \sqrt{\ln(1/\alpha)/(2n)}$: with confidence 1 - alpha the expectation of a score is above it.

    Hoeffding's Theorem 2, for n independent scores in [0, 1] of the given mean.

    Raises:
        ValueError: no n scores could have that mean, or alpha is not a probability.
    """
    _check(mean, n, alpha)
    return _below(mean - math.sqrt(-math.log(alpha) / (2 * n)))


def hoeffding_upper(mean: float, n: int, alpha: float) -> float:
    """Return the mirror image of `hoeffding_lower`; it is monotone in the mean."""
    _check(mean, n, alpha)
    return _above(mean + math.sqrt(-math.log(alpha) / (2 * n)))


def chernoff_lower(mean: float, n: int, alpha: float) -> float:
    r"""Return the p at which $n\,\mathrm{KL}(\bar p \| p) = \ln(1/\alpha)$, from below.

    Hoeffding's Theorem 1, which holds for all scores in [0, 1]; never below `hoeffding_lower` (Pinsker). Scores that
    all are 1 give alpha^(1/n), as Clopper and Pearson's bound does for hard votes.

    Raises:
        ValueError: as `hoeffding_lower`.
    """
    _check(mean, n, alpha)
    return _edge(lambda p: _improbable(mean, p, n, alpha), 0.0, mean) if mean > 0 else 0.0


def chernoff_upper(mean: float, n: int, alpha: float) -> float:
    """Return the mirror image of `chernoff_lower`; it is monotone in the mean."""
    _check(mean, n, alpha)
    return _edge(lambda p: _improbable(mean, p, n, alpha), 1.0, mean) if mean < 1 else 1.0


def bernstein_lower(mean: float, variance: float, n: int, alpha: float) -> float:
    r"""Return $\bar p - \sqrt{2 V \ln(2/\alpha)/n} - 7\ln(2/\alpha)/(3(n-1))$, V the unbiased variance of the scores.

    Maurer and Pontil's Theorem 4. Its constant: Bennett's inequality at alpha / 2 asks for
    $\sqrt{2\sigma^2 L/n} + L/(3n)$ with $L = \ln(2/\alpha)$; their Theorem 10, at alpha / 2 too, puts
    $\sqrt V + \sqrt{2L/(n-1)}$ for the unknown $\sigma$; and $2L/\sqrt{n(n-1)} + L/(3n) \le 7L/(3(n-1))$.

    Raises:
        ValueError: as `hoeffding_lower`, or the variance is impossible, or n is 1.
    """
    return _below(mean - _bernstein(mean, variance, n, alpha))


def bernstein_upper(mean: float, variance: float, n: int, alpha: float) -> float:
    """Return the mirror image of `bernstein_lower`. It is not monotone in the mean alone: the variance counts, too."""
    return _above(mean + _bernstein(mean, variance, n, alpha))


def log_evidence(successes: int, trials: int, p: float) -> float:
    r"""Return the logarithm of the mixture martingale against "the proportion is p", 0 < p < 1.

    $M_t(p) = \frac{B(k + 1/2,\, t - k + 1/2)}{B(1/2, 1/2)\; p^k (1-p)^{t-k}}$, the likelihood of k successes in t
    trials under a Beta(1/2, 1/2) prior over that under p. In logarithms nothing overflows. Rounded down.
    """
    own = successes * math.log(p) + (trials - successes) * math.log1p(-p)
    mixed = float(betaln(successes + 0.5, trials - successes + 0.5))
    largest = 1 - own + trials * math.log(trials + 1)  # largest of the terms that cancel inside `betaln`, too
    return mixed - math.log(math.pi) - own - ROUNDING * largest


def decide(successes: int, trials: int, p0: float, alpha: float) -> bool | None:
    r"""Decide whether the proportion p of a sequence of independent trials is at least p0; None is "go on".

    True once $k/t > p_0$ and $M_t(p_0) \ge 1/\alpha$, False once $k/t < p_0$ and the same, with M of `log_evidence`.
    It may be asked after any trials, as often as wanted. The first answer is wrong with probability at most
    alpha over the whole sequence.

    Proof. $M_t(p)$ at the true p is a mixture of likelihood ratios, so a nonnegative martingale with $M_0 = 1$, and by
    Ville's inequality $P[\exists t: M_t(p) \ge 1/\alpha] \le \alpha$. Let the answer be True at t although p < p0. The
    likelihood $q^k(1-q)^{t-k}$ grows in q up to k/t > p0 > p, so $M_t(p) \ge M_t(p_0) \ge 1/\alpha$. Let it be False
    although p >= p0 > k/t: the likelihood falls beyond k/t, and again $M_t(p) \ge M_t(p_0)$. Both are the one event
    above (and only one of them is possible for a given p).

    Raises:
        ValueError: the counts, p0 or alpha are impossible.
    """
    if not (0 <= successes <= trials and 0 < alpha < 1 and 0 <= p0 <= 1):
        raise ValueError(f"no decision on p >= {p0} from {successes} of {trials} at alpha {alpha}")
    if p0 == 0:
        return True
    if p0 == 1:
        return False if successes < trials else None
    if log_evidence(successes, trials, p0) < -math.log(alpha) * (1 + ROUNDING) or successes == trials * p0:
        return None
    return successes > trials * p0


def sequence(successes: int, trials: int, alpha: float) -> tuple[float, float]:
    """Return a lower and an upper bound of the proportion; with confidence 1 - alpha they hold at every time.

    Every p that `decide` would exclude on either side is outside. So sampling may stop at a time chosen by looking.

    Raises:
        ValueError: the counts or alpha are impossible.
    """
    if not (0 <= successes <= trials and 0 < alpha < 1):
        raise ValueError(f"no confidence sequence for {successes} of {trials} at alpha {alpha}")
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials

    def excluded(p: float) -> bool:
        return not 0 < p < 1 or decide(successes, trials, p, alpha) is not None

    return _edge(excluded, 0.0, share) if successes else 0.0, _edge(excluded, 1.0, share) if share < 1 else 1.0


def _edge(excluded: Callable[[float], bool], outer: float, inner: float) -> float:
    """Bisect between a value that is excluded and one that is not; return the excluded end."""
    for _ in range(200):
        middle = (outer + inner) / 2
        if middle in (outer, inner):
            break
        outer, inner = (middle, inner) if excluded(middle) else (outer, middle)
    return outer


def _divergence(q: float, p: float) -> float:
    """Return the relative entropy of Bernoulli(q) to Bernoulli(p)."""
    if not 0 < p < 1:
        return 0.0 if q == p else math.inf
    return (q * math.log(q / p) if q > 0 else 0.0) + ((1 - q) * math.log((1 - q) / (1 - p)) if q < 1 else 0.0)


def _improbable(mean: float, p: float, n: int, alpha: float) -> bool:
    return n * _divergence(mean, p) >= -math.log(alpha) * (1 + ROUNDING) + n * ROUNDING


def _bernstein(mean: float, variance: float, n: int, alpha: float) -> float:
    _check(mean, n, alpha)
    if n < 2 or not 0 <= variance <= 0.5 + ROUNDING:
        raise ValueError(f"{n} scores in [0, 1] have no variance {variance}")
    log = math.log(2 / alpha)
    return math.sqrt(2 * variance * log / n) + 7 * log / (3 * (n - 1))


def _below(value: float) -> float:
    return min(max(value - ROUNDING, 0.0), 1.0)


def _above(value: float) -> float:
    return min(max(value + ROUNDING, 0.0), 1.0)


def _check(mean: float, n: int, alpha: float) -> None:
    if not (0 <= mean <= 1 and n > 0 and 0 < alpha < 1):
        raise ValueError(f"no confidence bound for {n} scores of mean {mean} at alpha {alpha}")
