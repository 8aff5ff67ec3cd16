import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from certbench.verifiers.smoothing.confidence import binomial
from certbench.verifiers.smoothing.confidence.top_k import simultaneous_bounds, topk_radius
from certbench.verifiers.smoothing.noise import gaussian_radius


@pytest.mark.parametrize("uppers", [[0.1, 0.25, 0.05], [0.39, 0.2], [0.0, 0.3]])
def test_top_1_is_the_radius_of_two_classes(uppers: list[float]) -> None:
    assert topk_radius(0.4, uppers, 1, 0.5) == gaussian_radius.radius(0.4, max(uppers), 0.5)


def theorem(p: float, others: list[float], k: int) -> float:
    """The equation of Jia et al. for sigma 1, by Brent's method."""
    best, largest = 0.0, sorted(others, reverse=True)[:k]
    for t in range(1, k + 1):
        rest = min(sum(largest[k - t :]), 1 - p)
        if p > rest / t:
            best = max(best, brentq(lambda r: ndtr(ndtri(p) - r) - ndtr(ndtri(rest) + r) / t, 0, 20, xtol=1e-13))  # noqa: B023
    return best


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_radii_solve_the_equation_from_below(k: int) -> None:
    stream = np.random.default_rng(k)
    positive = 0
    for _ in range(60):
        others = sorted(stream.dirichlet(np.full(8, 0.7)).tolist(), reverse=True)
        p = others.pop(k - 1)
        uppers = [min(1.0, 1.1 * q + 0.001) for q in others]
        found, wanted = topk_radius(p, uppers, k, 0.25), 0.25 * theorem(p, uppers, k)
        assert wanted - 1e-9 <= found <= wanted + 1e-13
        positive += found > 0
    assert positive > 10


def test_the_label_is_among_the_k_wherever_the_radius_says_so() -> None:
    """Intervals of the line as classes: their smoothed probabilities are known, and so is the true radius."""
    stream = np.random.default_rng(0)
    tightest = 0.0
    for _ in range(200):
        edges = np.sort(stream.normal(0, 1.5, 5))
        label, k = int(stream.integers(6)), int(stream.integers(1, 4))
        x = np.linspace(-4, 4, 1601)
        shares = np.diff(ndtr(np.concatenate([[-np.inf], edges, [np.inf]]) - x[:, None]), axis=1)
        inside = (shares > shares[:, [label]]).sum(axis=1) < k
        centre = shares[800]
        radius = topk_radius(float(centre[label]), np.delete(centre, label).tolist(), k, 1.0)
        outside = np.abs(x[~inside])
        nearest = outside.min() if len(outside) else math.inf
        assert radius <= nearest + 1e-9
        tightest = max(tightest, radius / nearest if 0 < nearest < math.inf else 0.0)
    assert tightest > 0.9


def test_radii_grow_with_k_and_shrink_with_the_bounds() -> None:
    others = [0.3, 0.1, 0.08, 0.05, 0.02]
    radii = [topk_radius(0.35, others, k, 1.0) for k in range(1, 7)]
    assert radii[:-1] == sorted(radii[:-1]) and radii[0] > 0
    assert radii[5] == math.inf  # six classes
    assert topk_radius(0.34, others, 3, 1.0) < radii[2]
    assert topk_radius(0.35, [0.31, *others[1:]], 3, 1.0) <= radii[2]
    assert topk_radius(0.35, [0.3, 0.11, *others[2:]], 2, 1.0) < radii[1]


def test_the_sum_of_the_rest_is_used_where_it_is_the_better_bound() -> None:
    alone = gaussian_radius.radius(0.2, 0.15, 1.0)  # the second of two others
    both = topk_radius(0.2, [0.15, 0.15], 2, 1.0)
    assert both >= alone
    assert topk_radius(0.12, [0.8, 0.13], 2, 1.0) == 0
    assert topk_radius(0.12, [0.13, 0.06], 2, 1.0) > 0


def test_edges() -> None:
    assert topk_radius(0.0, [0.0, 0.0], 2, 1.0) == 0
    assert topk_radius(1.0, [0.5, 0.5], 2, 1.0) == math.inf
    assert topk_radius(0.3, [0.9, 0.0], 2, 1.0) == math.inf  # the other class is never drawn, so nowhere
    for bad in ([math.nan], [1.5], [-0.1]):
        with pytest.raises(ValueError, match="top-1"):
            topk_radius(0.5, bad, 1, 1.0)
    with pytest.raises(ValueError, match="top-0"):
        topk_radius(0.5, [0.1], 0, 1.0)


def test_simultaneous_bounds_divide_alpha_among_the_classes() -> None:
    low, uppers = simultaneous_bounds([10, 70, 15, 5], 1, 100, 0.02)
    assert low == binomial.lower(70, 100, 0.005)
    assert uppers == [binomial.upper(k, 100, 0.005) for k in (10, 15, 5)]
    stream, truth, wrong = np.random.default_rng(0), np.array([0.4, 0.3, 0.2, 0.1]), 0
    for counts in stream.multinomial(50, truth, size=150).tolist():
        low, uppers = simultaneous_bounds(counts, 2, 50, 0.3)
        wrong += low > 0.2 or bool((np.array(uppers) < truth[[0, 1, 3]]).any())
    assert 5 <= wrong <= 66  # Binomial(150, 0.3) is above 66 with probability 1e-4
