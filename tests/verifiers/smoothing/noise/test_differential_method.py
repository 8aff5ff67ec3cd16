import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats
from scipy.special import ndtri

from certbench.verifiers.smoothing.noise import differential_method as heights
from certbench.verifiers.smoothing.noise.families import (
    Laplace,
)


@pytest.mark.parametrize("d", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("p", [0.6, 0.99, 1 - 1e-4])
def test_laplace_linf_is_the_sum_over_all_signs(d: int, p: float) -> None:
    sums = np.sort([sum(signs) for signs in itertools.product((-1, 1), repeat=d)])[::-1]
    knots = np.arange(2**d + 1) / 2**d
    flux = np.concatenate([[0], np.cumsum(sums)]) / 2**d
    points = [1 - p, *knots[(knots > 1 - p) & (knots < 0.5)], 0.5]
    expected = sum(
        integrate.quad(lambda t: 1 / np.interp(t, knots, flux), *ends, epsabs=0, epsrel=1e-10)[0]
        for ends in itertools.pairwise(points)
    )
    noise = Laplace(0.7)
    assert noise.direct(p, 1 - p, d)[math.inf] == pytest.approx(noise.scale(d) * expected, rel=1e-8)


@pytest.mark.parametrize(("d", "excess"), [(1, 1.135), (3, 1.022), (5, 1.004)])
def test_the_normal_approximation_of_laplace_overclaims_in_small_odd_dimension(d: int, excess: float) -> None:
    approximate = float(ndtri(0.6)) / math.sqrt(d)
    exact = heights.laplace_linf(1 - 0.6, d)
    assert approximate / exact == pytest.approx(excess, abs=6e-4)
    # d = 1: the true law of the shifted half-line says so too
    assert stats.laplace.cdf(stats.laplace.ppf(0.6) - float(ndtri(0.6))) < 0.5


@pytest.mark.parametrize("d", [10, 100, 784])
@pytest.mark.parametrize("p", [0.6, 0.99])
def test_the_normal_approximation_is_below_in_large_dimension(d: int, p: float) -> None:
    assert 0.97 < float(ndtri(p)) / math.sqrt(d) / heights.laplace_linf(1 - p, d) < 1


def height_on(points: np.ndarray, mass: np.ndarray, score: np.ndarray, p: float) -> float:
    """The height of p by sums along sets that grow over `points`, in order of falling score."""
    steps = abs(np.diff(points))

    def grown(y: np.ndarray) -> np.ndarray:
        return np.cumsum((y[1:] + y[:-1]) / 2 * steps)

    s, flux = grown(mass), grown(mass * score)
    s, flux = s / s[-1] / 2, flux / s[-1] / 2  # with s = 1/2 in the end
    s, flux = s[s > 1e-100], flux[s > 1e-100]
    ratio = s / flux
    pieces = np.diff(np.log(s)) * (ratio[1:] + ratio[:-1]) / 2
    left = np.concatenate([np.cumsum(pieces[::-1])[::-1], [0.0]])
    return float(np.interp(math.log(1 - p), np.log(s), left))


@pytest.mark.parametrize("d", [1, 2, 3, 10])
@pytest.mark.parametrize("p", [0.51, 0.6, 0.99, 1 - 1e-6])
def test_heights_equal_the_integrals_that_define_them(d: int, p: float) -> None:
    if d > 1:
        angle = np.union1d(np.geomspace(1e-12, 0.1, 100_000), np.linspace(0.1, math.pi / 2, 100_000))
        expected = height_on(angle, np.sin(angle) ** (d - 2), np.cos(angle), p)
        assert heights.exp_two(1 - p, d) == pytest.approx(expected, rel=1e-6)
    for k in (0.5, 2.0, 3.0):
        r = np.geomspace(1e-30, 20_000, 200_000) if k < 1 else np.geomspace(1e-12, 12, 200_000)[::-1]
        expected = height_on(r, r ** (d - 1) * np.exp(-(r**k)), k * r ** (k - 1), p)
        assert heights.exp_inf_linf(1 - p, 0.5, k, d) == pytest.approx(expected, rel=1e-6)
    r = np.geomspace(1e-12, 1e12, 200_000)
    expected = height_on(r, r ** (d - 1) * (1 + r) ** (-d - 3.5), (d + 3.5) / (1 + r), p)
    assert heights.pow_inf_linf(1 - p, 0.5, 3.5, d) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("p", [0.51, 0.6, 0.99, 1 - 1e-6])
def test_heights_where_the_score_falls_equal_the_integrals_that_define_them(p: float) -> None:
    x = np.geomspace(1e-12, 1e12, 200_000)
    for a in (2.5, 6.0):
        expected = height_on(x, (1 + x) ** (-a - 1), (a + 1) / (1 + x), p)
        assert heights.pareto(1 - p, a) == pytest.approx(expected, rel=1e-6)
    for q in (0.25, 0.5, 0.9):
        x = np.geomspace(1e-60, 40 ** (1 / q), 300_000)
        expected = height_on(x, np.exp(-(x**q)), q * x ** (q - 1), p)
        assert heights.exp_p(1 - p, q) == pytest.approx(expected, rel=1e-6)
        assert heights.exp_inf_linf(1 - p, 0.5, q, 1) == pytest.approx(expected, rel=1e-6)
