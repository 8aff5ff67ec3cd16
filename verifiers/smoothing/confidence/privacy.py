r"""Older guarantees from the same noise, by differential privacy and Rényi divergence, for comparison.

No certifier uses them yet; the tests hold them against the tight radius.

PixelDP (Lecuyer, Atlidakis, Geambasu, Hsu and Jana, 2019), Li, Chen, Wang and Carin (2019), and the risk gap of Pinot,
Meunier, Araujo, Kashima, Yger, Gouy-Pailler and Atif (2019). For Gaussian noise none of the radii exceeds Cohen's,
which is tight. p_lower bounds the top class's probability from below, p_upper any other's from above. sigma and b are
the noise's, divided by the sensitivity of the part before it (1 for noise on the input). All radii are rounded down.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

ROUNDING = 1e-12


def lecuyer(p_lower: float, p_upper: float, sigma: float) -> float:
    r"""Return the L2 radius for Gaussian noise by $(\epsilon, \delta)$-privacy (Lecuyer et al., Proposition 1).

    Noise of $\sigma = \sqrt{2\ln(1.25/\delta)}\, L/\epsilon$, epsilon <= 1, is private at distance L, and the class
    stays if $p_A > e^{2\epsilon} p_B + (1 + e^\epsilon)\delta$. The radius is the largest L over all epsilon, with the
    delta that this leaves.
    """
    if not _separate(p_lower, p_upper):
        return 0.0

    def reach(eps: float) -> float:
        delta = (p_lower * (1 - 1e-15) - math.exp(2 * eps) * p_upper) / (1 + math.exp(eps)) * (1 - ROUNDING)
        return eps / math.sqrt(2 * math.log(1.25 / delta)) if delta > 0 else 0.0

    return sigma * _largest(reach, np.linspace(0, 1, 101)[1:].tolist()) * (1 - ROUNDING)


def pixeldp_laplace(p_lower: float, p_upper: float, b: float) -> float:
    r"""Return the L1 radius for Laplace noise of scale b by $(\epsilon, 0)$-privacy (Lecuyer et al.).

    $\frac b2 \ln(p_A/p_B)$.
    """
    if not _separate(p_lower, p_upper):
        return 0.0
    return math.inf if p_upper == 0 else max(b / 2 * (math.log(p_lower / p_upper) * (1 - ROUNDING) - 4e-16), 0.0)


def li(p_lower: float, p_upper: float, sigma: float) -> float:
    r"""Return the L2 radius for Gaussian noise by Rényi divergence (Li et al., Theorem 1).

    $\sup_{a>1} \sqrt{-\frac{2\sigma^2}{a}\ln(1 - p_A - p_B + 2 M_{1-a}(p_A, p_B))}$ with the power mean
    $M_s(p, q) = (\frac{p^s + q^s}2)^{1/s}$, evaluated by logarithms: evaluated directly it overflows for large a, and
    then gives more than Cohen's radius.
    """
    if not _separate(p_lower, p_upper):
        return 0.0
    if p_upper == 0:
        return sigma * math.sqrt(-2 * math.log1p(-p_lower)) * (1 - ROUNDING) if p_lower < 1 else math.inf
    logs = np.log([p_lower, p_upper])

    def reach(log_order: float) -> float:
        s = -math.exp(log_order)  # 1 - a
        error = 2e-15 / -s + 1e-15 * (1 - float(logs.sum()))  # error of the mean; the root below would enlarge it
        mean = math.exp((float(logsumexp(s * logs)) - math.log(2)) / s) * (1 + error)
        drop = min(p_lower + p_upper - 2 * mean - 4e-16, 1 - 2**-52)
        return math.sqrt(-2 / (1 - s) * math.log1p(-drop)) if drop > 0 else 0.0

    return sigma * _largest(reach, np.linspace(-9, 9, 181).tolist()) * (1 - ROUNDING)


def li_laplace(p_lower: float, p_upper: float, b: float) -> float:
    r"""Return the L1 radius $-b\ln(1 - p_A + p_B)$ for Laplace noise of scale b (Li et al.)."""
    if not _separate(p_lower, p_upper):
        return 0.0
    gap = min(p_lower - p_upper, 1 - 2**-53)
    return max(-b * math.log1p(-gap) * (1 - ROUNDING) - b * 4e-16, 0.0)


def gaussian_divergence(sensitivity: float, sigma: float, order: float = 1.0) -> float:
    r"""Return the Rényi divergence of an order, $\lambda\Delta^2/(2\sigma^2)$.

    It is that of Gaussian noise at two points `sensitivity` apart in L2.
    """
    return order * sensitivity**2 / (2 * sigma**2)


def laplace_divergence(sensitivity: float, b: float) -> float:
    r"""Return the largest Rényi divergence of any order, $\Delta/b$.

    It is that of Laplace noise at two points `sensitivity` apart in L1.
    """
    return sensitivity / b


def risk_gap(probabilities: Float[np.ndarray, "inputs classes"], divergence: float) -> float:
    r"""Return how much an adversary can add to the risk of the randomised classifier (Pinot et al., Theorem 3).

    $1 - e^{-\epsilon}\, E_x[e^{-H(M(x))}]$, H the entropy in nats of the classes that M gives at x. M answers with one
    noisy draw. So this is about its risk over the data, neither about a majority vote nor about a single input.

    It holds because a right answer turns wrong only if M(x) and M(x') differ, and for independent draws
    $P[M(x) = M(x')] = \sum_c p_c q_c \ge e^{\sum_c p_c \ln q_c} = e^{-H(p) - KL(p\|q)}$ by Jensen's inequality.

    Args:
        probabilities: probability of each class at each input, rows that sum to 1. They are assumed to be the true
            ones, and the inputs to stand for the population. From frequencies of draws the result is an estimate, a
            little too small.
        divergence: bound of the Kullback-Leibler divergence of M(x) to M(x') over all x' of the threat model, such as
            `gaussian_divergence` or `laplace_divergence` of the sensitivity; a Rényi divergence of any order >= 1 is
            one.

    Raises:
        ValueError: rows are no distributions, or the divergence is negative.
    """
    p = probabilities.astype(np.float64)
    if not ((p >= 0).all() and np.allclose(p.sum(axis=1), 1) and divergence >= 0 and len(p)):
        raise ValueError("the risk gap needs distributions over classes, and a divergence >= 0")
    entropy = -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)
    return float(1 - math.exp(-divergence) * np.exp(-entropy).mean() * (1 - ROUNDING))


def _separate(p_lower: float, p_upper: float) -> bool:
    if not (0 <= p_lower <= 1 and 0 <= p_upper <= 1):
        raise ValueError(f"{p_lower} and {p_upper} bound no probabilities")
    return p_lower > p_upper


def _largest(reach: Callable[[float], float], grid: list[float]) -> float:
    """Maximise over a grid and, three times, over a finer one about its best point; any point's value is valid."""
    for _ in range(4):
        values = [reach(point) for point in grid]
        best = int(np.argmax(values))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        grid = np.linspace(low, high, 41).tolist()
    return max(values)
