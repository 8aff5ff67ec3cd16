"""Heights h(1 - t) of noises in units of their scale, for a tail 0 < t <= 1/2; `families` turns them into radii.

Each is the integral of ds / F(s) from t to 1/2 (see `base`), where F(s) is the largest flux through the boundary
of a set of probability s: the integral of the score -v . grad log q over the set {score >= c} that has probability s
(Neyman and Pearson). The method is that of Yang et al. (2020).

Quadratures err downward. Gauss-Legendre's error is a derivative of even order, positive for a sum of exp(-n x) and of
exp(-n x^q) with q <= 1; and a convex function lies above its tangents.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy.special import (
    betainc,
    betainccinv,
    betaincinv,
    gammainc,
    gammaincc,
    gammainccinv,
    gammaincinv,
)

PANELS = 8192
"""Number of tangents per integral. They lose 2e-8 of it at t = 0.01 and 1e-6 at t = 1e-12."""

SERIES = 100_000
"""Largest shape at which SciPy's series of the lower incomplete gamma function is used. The series stops after 2000
terms; at shape 1.5 million it is 8e-5 short."""

NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)


def gamma_ratio(x: float, step: float) -> float:
    """Return Gamma(x + step) / Gamma(x), by differences of Stirling's series where those of logarithms lose digits."""
    if min(x, x + step) < 100:
        return math.exp(math.lgamma(x + step) - math.lgamma(x))
    end = x + step
    rest = (1 / end - 1 / x) / 12 - (1 / end**3 - 1 / x**3) / 360
    return math.exp((x - 0.5) * math.log1p(step / x) + step * math.log(end) - step + rest)


def laplace_linf(tail: float, d: int) -> float:
    r"""Return the height of independent Laplace noise in Linf: exact in every dimension.

    The score is $s = \sum_i \pm 1$, which is 2 Bin(d, 1/2) - d, in the worst direction. So F is linear between the
    tails of s, with slope s, and the integral is a sum of logarithms. The usual $\Phi^{-1}(1 - t) / \sqrt d$ is larger
    in small odd dimensions, by 13 % in one.
    """
    slopes, tails, fluxes = _binomial(d)
    start = int(np.searchsorted(tails, tail, side="right")) - 1  # tails[start] <= tail < tails[start + 1]
    if start < 0:  # the farthest value alone, F(s) = slope s; or what the table leaves out, and F is at most that
        return laplace_linf(float(tails[0]), d) + math.log(tails[0] / tail) / d
    edges = np.concatenate([[tail], tails[start + 1 :]])
    slope = slopes[start + 1 :]
    if not len(slope):
        return 0.0  # at 1/2
    flux = np.concatenate([[fluxes[start] + slope[0] * (tail - tails[start])], fluxes[start + 1 : -1]])
    width = np.diff(edges)
    level = slope == 0
    safe = np.where(level, 1.0, slope)
    return float(np.where(level, width / flux, np.log1p(safe * width / flux) / safe).sum())


@lru_cache(maxsize=64)
def _binomial(d: int) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Return the values s >= 0 of 2 Bin(d, 1/2) - d, falling; P[S >= s] (1/2 at the last); and E[S; S >= s].

    Values whose probability is below 1e-250 of the commonest are left out. Probabilities come from ratios of neighbours
    and are scaled to sum to 1, as logarithms of factorials would lose ten digits in large dimensions.
    """
    reach = min(d, int(math.sqrt(1200 * d)) + 2)
    values = np.arange(d % 2, reach + 1, 2, dtype=np.float64)
    ratio = (d - values[:-1]) / (d + values[:-1] + 2)  # P[s + 2] / P[s]
    chances = np.cumprod(np.concatenate([[1.0], ratio]))
    keep = chances > 1e-250
    values, chances = values[keep], chances[keep]
    chances /= 2 * chances.sum() - (chances[0] if d % 2 == 0 else 0)
    values, chances = values[::-1], chances[::-1]
    tails = np.cumsum(chances)
    tails[-1] = 0.5  # where d is even, half of s = 0 fills the tail
    return values, tails, np.cumsum(values * chances)


def pareto(tail: float, a: float) -> float:
    r"""Return the height of density $\propto (1 + |x|)^{-a - 1}$ in L1.

    The score falls with x > 0, so the worst set of probability s is 0 < x < c, and
    $F(s) = q(0) - q(c) = a/2 (1 - (1 - 2s)^{1 + 1/a})$. With $1 - 2s = e^{-v}$ the height is
    $1/a \int_{v(t)}^\infty e^{-v} / (1 - e^{-(1 + 1/a) v}) dv$, a sum of $e^{-n v}$'s.
    """
    if tail >= 0.5:
        return 0.0
    edges = [-math.log1p(-2 * tail)]
    end = edges[0] + 45
    while edges[-1] < end:
        edges.append(edges[-1] + min(edges[-1], 2.0))
    power = 1 + 1 / a
    return _gauss(np.array(edges), lambda v: np.exp(-v) / -np.expm1(-power * v)) / a


def exp_p(tail: float, q: float) -> float:
    r"""Return the height of density $\propto \exp(-|x|^q)$ in L1; $|x|^q$ follows Gamma(1/q).

    q >= 1: the score rises with x, the worst set is a half-line, and the height a quantile. q < 1: the score falls with
    x > 0, the worst set of probability s is 0 < x < c, $F(s) = q(0) - q(c)$, and the height is
    $\int_c^\infty dx / (e^{x^q} - 1)$, c for s = t: a sum of $e^{-n x^q}$'s.
    """
    if tail >= 0.5:
        return 0.0
    if q >= 1:
        rising = gammainccinv(1 / q, 2 * tail) if tail < 0.25 else gammaincinv(1 / q, 1 - 2 * tail)
        return math.pow(rising, 1 / q)
    power = float(gammaincinv(1 / q, 2 * tail) if tail <= 0.25 else gammainccinv(1 / q, 1 - 2 * tail))
    powers = [power]
    while powers[-1] < power + 50:
        powers.append(powers[-1] + min(powers[-1] * (2**q - 1), 4.0))  # at most doubles x
    return _gauss(np.power(powers, 1 / q), lambda x: 1 / np.expm1(x**q))


def exp_two(tail: float, d: int) -> float:
    r"""Return the height of density $\propto \exp(-\|x\|_2)$ in L2: (d - 1) atanh(c).

    c is the cosine exceeded with probability t. The score is the cosine to v, $(1 + c)/2$ follows
    Beta((d - 1)/2, (d - 1)/2), and
    $F = \kappa \int_c^1 x (1 - x^2)^{(d - 3)/2} dx = \kappa (1 - c^2)^{(d - 1)/2} / (d - 1)$. In one dimension it is
    Laplace noise.
    """
    if d == 1:
        return -math.log(2 * tail)
    sine = float(betaincinv((d - 1) / 2, 0.5, 2 * tail)) if tail < 0.25 else 1.0  # 1 - c^2
    if sine < 0.5:
        return (d - 1) * math.asinh(math.sqrt((1 - sine) / sine))
    square = betainccinv(0.5, (d - 1) / 2, 2 * tail) if tail < 0.25 else betaincinv(0.5, (d - 1) / 2, 1 - 2 * tail)
    return (d - 1) * math.atanh(math.sqrt(square))


@lru_cache(maxsize=4096)
def exp_inf_linf(tail: float, top: float, k: float, d: int) -> float:
    r"""Return the height of density $\propto \exp(-\|x\|_\infty^k)$, k != 1, in Linf, from t to `top` <= 1/2.

    The score is $\pm k r^{k - 1}$, r the norm, either sign with probability 1/2 whatever r, and $u = r^k$ follows
    Gamma(d/k). k > 1: the worst set is r > c with the sign +, of probability $s = Q(d/k, u) / 2$, and
    $F = k/2 \cdot \Gamma(s') / \Gamma(d/k) \cdot Q(s', u)$ with $s' = (d + k - 1)/k$. k < 1: r < c, and P for Q.
    (k = 1: F(s) = s.)

    Raises:
        ValueError: k < 1 and d / k > `SERIES`.
    """
    if k < 1 and d / k > SERIES:
        raise ValueError(f"gammainc has too few digits for d / k = {d / k:g}")
    shape, other = d / k, (d + k - 1) / k
    size = k / 2 * gamma_ratio(shape, 1 - 1 / k)
    part, inverse = (gammaincc, gammainccinv) if k > 1 else (gammainc, gammaincinv)
    edges, touch = _panels(tail, top)
    u = inverse(shape, 2 * touch)
    return _tangents(edges, part(shape, u) / 2, size * part(other, u), k * u ** (1 - 1 / k))


@lru_cache(maxsize=4096)
def pow_inf_linf(tail: float, top: float, a: float, d: int) -> float:
    r"""Return the height of density $\propto (1 + \|x\|_\infty)^{-d - a}$ in Linf: the integral from t to `top` <= 1/2.

    The score is $\pm (d + a)(1 - w)$, where $w = r / (1 + r)$ follows Beta(d, a): the worst set is w < c with the sign
    +, of probability $s = I_c(d, a) / 2$, and $F = a/2 \cdot I_c(d, a + 1)$.
    """
    edges, touch = _panels(tail, top)
    w = betaincinv(d, a, 2 * touch)
    return _tangents(edges, betainc(d, a, w) / 2, a / 2 * betainc(d, a + 1, w), (d + a) * (1 - w))


def _panels(tail: float, top: float) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " n"]]:
    """Return panels from `tail` to `top`, in geometric progression, and the points where tangents touch."""
    places = math.log(tail / top) * np.linspace(1, 0, 2 * PANELS + 1)
    points = top * np.exp(places)
    points[0] = tail
    return points[::2], points[1::2]


def _tangents(
    edges: Float[np.ndarray, " m"],
    s: Float[np.ndarray, " n"],
    flux: Float[np.ndarray, " n"],
    score: Float[np.ndarray, " n"],
) -> float:
    """Integrate 1/F by tangents at s: F' is the score at the boundary, so F is concave and 1/F convex."""
    width, middle = np.diff(edges), (edges[1:] + edges[:-1]) / 2
    return float((width / flux * (1 - score / flux * (middle - s))).sum())


def _gauss(
    edges: Float[np.ndarray, " m"], function: Callable[[Float[np.ndarray, "m n"]], Float[np.ndarray, "m n"]]
) -> float:
    half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
    return float((function(middle[:, None] + half[:, None] * NODES) @ WEIGHTS * half).sum())
