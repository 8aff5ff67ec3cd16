"""Older guarantees, that Cohen's radius must not lie below."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from certbench.verifiers.smoothing.confidence import privacy
from certbench.verifiers.smoothing.noise import gaussian_radius


@pytest.mark.parametrize(
    ("p", "cohen", "li", "lecuyer"),
    [
        (0.6, 0.2533, 0.2022, 0.0592),
        (0.75, 0.6745, 0.5396, 0.1810),
        (0.9, 1.2816, 1.0319, 0.3903),
        (0.99, 2.3263, 1.9080, 0.5546),
        (0.999, 3.0902, 2.5757, 0.5684),
        (0.9999, 3.7190, 3.1409, 0.5698),
    ],
)
def test_older_radii_are_the_known_ones(p: float, cohen: float, li: float, lecuyer: float) -> None:
    assert gaussian_radius.radius(p, 1 - p, 1.0) == pytest.approx(cohen, abs=6e-5)
    assert privacy.li(p, 1 - p, 1.0) == pytest.approx(li, abs=6e-5)
    assert lecuyer - 6e-5 <= privacy.lecuyer(p, 1 - p, 1.0) <= lecuyer + 6e-4  # those were over a grid of deltas


PAIRS = [(p, q) for p in (0.2, 0.4, 0.51, 0.7, 0.95, 0.999999) for q in (0.0, 1e-9, 0.01, 0.19, 0.4) if p + q <= 1]


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_no_older_radius_exceeds_the_tight_one(p: float, q: float) -> None:
    tight = gaussian_radius.radius(p, q, 0.5)
    assert max(privacy.li(p, q, 0.5), privacy.lecuyer(p, q, 0.5)) <= tight
    assert gaussian_radius.lipschitz_radius(p, q, 0.5) <= tight
    assert (tight > 0) == (p > q)
    if p > 0.5 > q > 0:
        laplace = -0.5 * math.log(4 * q * (1 - p))
        assert max(privacy.pixeldp_laplace(p, q, 1.0), privacy.li_laplace(p, q, 1.0)) <= laplace


@pytest.mark.parametrize("gap", [1e-15, 1e-13, 1e-11, 1e-8])
@pytest.mark.parametrize("p", [1e-9, 0.1, 0.39, 0.5])
def test_probabilities_that_hardly_differ_certify_no_more_than_they_may(p: float, gap: float) -> None:
    """The root of a rounding error once was a radius; the tight one is half the difference over the density."""
    high = p * (1 + gap)
    exact = float(Fraction(high) - Fraction(p))
    normal = exact / 2 / (math.exp(-(float(ndtri(p)) ** 2) / 2) / math.sqrt(2 * math.pi))
    assert max(privacy.li(high, p, 1.0), privacy.lecuyer(high, p, 1.0)) <= normal * (1 + 1e-6)
    assert max(privacy.pixeldp_laplace(high, p, 1.0), privacy.li_laplace(high, p, 1.0)) <= exact / 2 / p * (1 + 1e-12)


def test_what_does_not_separate_certifies_nothing_and_nonsense_is_refused() -> None:
    for radius in (privacy.li, privacy.lecuyer, privacy.pixeldp_laplace, privacy.li_laplace, gaussian_radius.radius):
        assert radius(0.3, 0.3, 1.0) == 0
        assert radius(0.2, 0.6, 1.0) == 0
        with pytest.raises(ValueError, match="bound no"):
            radius(math.nan, 0.1, 1.0)


def test_the_risk_gap_holds_for_every_shift_of_the_noise() -> None:
    edges = np.array([-np.inf, -0.4, 0.3, 1.1, np.inf])
    points, sigma, step = np.linspace(-2, 2, 41), 0.5, 0.2

    def probabilities(x: np.ndarray) -> np.ndarray:
        return np.diff(ndtr((edges[None] - x[:, None]) / sigma), axis=1)

    here = probabilities(points)
    gap = privacy.risk_gap(here, privacy.gaussian_divergence(step, sigma))
    assert 0 < gap < 1
    for shift in (-step, step):
        added = (here - probabilities(points + shift)).max(axis=1).mean()
        assert 0.02 < added <= gap
    assert privacy.risk_gap(np.eye(3), 0.0) == pytest.approx(0, abs=1e-11)
    assert privacy.risk_gap(np.eye(3), privacy.laplace_divergence(0.2, 0.4)) == pytest.approx(1 - math.exp(-0.5))
    with pytest.raises(ValueError, match="distributions"):
        privacy.risk_gap(np.array([[0.5, 0.4]]), 0.1)
