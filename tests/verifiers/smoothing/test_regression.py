"""Percentile smoothing of regressors: the right order statistics, and intervals that hold."""

import math

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from scipy.stats import binom
from torch import Tensor, nn

from certbench import L1, L2, ConfigError, Linf
from certbench.core.classifier import Regressor
from certbench.verifiers.smoothing.regression import order_statistics, percentile_bounds, smoothed_output_bounds


def linear(weight: list[list[float]]) -> Regressor:
    module = nn.Linear(len(weight[0]), len(weight), bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weight))
    return Regressor(module.eval(), (len(weight[0]),), len(weight))


@pytest.mark.parametrize(
    ("n", "eps", "sigma", "alpha", "expected"),
    [(2000, 0.36, 0.25, 1e-5, (101, 1900)), (1000, 0.25, 0.5, 1e-3, (261, 740)), (5, 0.0, 1.0, 0.01, (0, 6))],
)
def test_order_statistics_are_the_known_ones(
    n: int, eps: float, sigma: float, alpha: float, expected: tuple[int, int]
) -> None:
    assert order_statistics(n, eps, sigma, alpha) == expected


@pytest.mark.parametrize("percentile", [0.5, 0.1, 0.95])
@pytest.mark.parametrize(("n", "eps", "alpha"), [(10, 0.0, 0.2), (200, 0.3, 0.01), (1000, 1.0, 0.001)])
def test_order_statistics_are_the_innermost_that_the_confidence_covers(
    percentile: float, n: int, eps: float, alpha: float
) -> None:
    low, high = order_statistics(n, eps, 0.5, alpha, percentile)
    centre = torch.special.ndtri(torch.tensor(percentile, dtype=torch.float64)).item()
    below, above = float(ndtr(centre - eps / 0.5)), float(ndtr(centre + eps / 0.5))
    if low > 0:
        assert binom.cdf(low - 1, n, below) <= alpha / 2
    assert binom.cdf(low, n, below) > alpha / 2
    if high <= n:
        assert binom.sf(high - 1, n, above) <= alpha / 2
    assert binom.sf(high - 2, n, above) > alpha / 2
    if percentile == 0.5:
        assert high == n + 1 - low


def test_counting_from_0_breaks_the_confidence() -> None:
    """The published code takes `sorted[l]`, which counted from 1 is the sample after K_(l)."""
    low, high = order_statistics(10, 0.0, 1.0, 0.11)
    assert (low, high) == (3, 8)
    samples = np.sort(np.random.default_rng(0).uniform(size=(4000, 10)), axis=1)
    most = binom.isf(1e-4, 4000, 0.11 / 2)
    assert (samples[:, low - 1] > 0.5).sum() <= most
    assert (samples[:, high - 1] < 0.5).sum() <= most
    assert (samples[:, low] > 0.5).sum() > most


@pytest.mark.machine
def test_intervals_hold_over_the_ball_and_close_in_on_the_truth() -> None:
    """The median of a linear output is the output, and over the ball it moves by eps times the norm of its weights."""
    regressor, eps = linear([[3.0, 4.0], [1.0, 0.0]]), 0.2
    x = torch.rand(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value, norms = regressor.double()(x), torch.tensor([5.0, 1.0], dtype=torch.float64)
    low, high = smoothed_output_bounds(regressor, x, eps, 0.5, n=200, alpha=0.2)
    wrong = ((low > value - eps * norms) | (high < value + eps * norms)).any(dim=1).sum()
    assert 1 <= int(wrong) <= 64  # Binomial(200, 0.2) is above 64 with probability 1e-4
    near, far = smoothed_output_bounds(regressor, x[:2], eps, 0.5, n=40_000, alpha=0.2)
    torch.testing.assert_close(near, value[:2] - eps * norms, atol=0.08, rtol=0)
    torch.testing.assert_close(far, value[:2] + eps * norms, atol=0.08, rtol=0)


def test_other_percentiles_bound_other_quantiles() -> None:
    regressor, x = linear([[1.0]]), torch.zeros(60, 1, dtype=torch.float64) + torch.arange(60)[:, None] / 60
    low, high = smoothed_output_bounds(regressor, x, 0.1, 1.0, n=1000, alpha=0.1, percentile=0.9)
    quantile = x + 1.2815515655446004
    assert int(((low > quantile - 0.1) | (high < quantile + 0.1)).sum()) <= 17
    assert bool((low > x + 0.9).all())


def test_an_l1_ball_is_cheaper_than_a_cube() -> None:
    regressor, x = linear([[1.0, 1.0, 1.0, 1.0]]), torch.zeros(1, 4, dtype=torch.float64)
    one, two, cube, wide = (
        smoothed_output_bounds(regressor, x, eps, 0.5, n=2000, threat=threat)[1].item()
        for threat, eps in ((L1, 0.1), (L2, 0.1), (Linf, 0.1), (L2, 0.2 * (1 + 1e-12)))
    )
    assert one == two < cube == wide


def test_an_input_depends_on_itself_and_the_seed_alone() -> None:
    regressor = linear([[1.0, -1.0]])
    x = torch.rand(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    together = smoothed_output_bounds(regressor, x, 0.1, 0.5, n=300)
    alone = smoothed_output_bounds(regressor, x[2:], 0.1, 0.5, n=300)
    assert torch.equal(together[0][2:], alone[0]) and torch.equal(together[1][2:], alone[1])
    assert not torch.equal(smoothed_output_bounds(regressor, x, 0.1, 0.5, n=300, seed=1)[0], together[0])
    empty = smoothed_output_bounds(regressor, x[:0], 0.1, 0.5, n=300)
    assert empty[0].shape == (0, 1)


def test_samples_are_taken_as_they_are_counted() -> None:
    low, high = order_statistics(100, 0.1, 1.0, 0.01)
    samples = torch.randperm(100, generator=torch.Generator().manual_seed(0)).double()[:, None] + 1  # K_(i) = i
    found = percentile_bounds(samples, 0.1, 1.0, 0.01)
    assert (found[0].item(), found[1].item()) == (low, high)


class Torn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(x > 0.5, math.nan)


def test_outputs_that_are_nan_widen_the_interval_on_both_sides() -> None:
    samples = torch.arange(100.0, dtype=torch.float64)[:, None].clone()
    clean = percentile_bounds(samples, 0.1, 1.0, 0.01)
    samples[45:55] = math.nan
    torn = percentile_bounds(samples, 0.1, 1.0, 0.01)
    assert torn[0] < clean[0] and torn[1] > clean[1]
    regressor = Regressor(Torn().eval(), (1,), 1)
    low, high = smoothed_output_bounds(regressor, torch.full((1, 1), 0.5, dtype=torch.float64), 0.1, 0.5, n=1000)
    assert low.item() == -math.inf and high.item() == math.inf


def test_too_few_draws_and_too_wide_balls_bound_nothing() -> None:
    x = torch.zeros(1, 1, dtype=torch.float64)
    for eps, n in ((0.1, 5), (5.0, 1000)):
        low, high = smoothed_output_bounds(linear([[1.0]]), x, eps, 0.5, n=n)
        assert low.item() == -math.inf and high.item() == math.inf


@pytest.mark.parametrize(
    "numbers", [{"n": 0}, {"sigma": 0.0}, {"sigma": math.nan}, {"alpha": 1.0}, {"eps": -1.0}, {"percentile": 1.0}]
)
def test_numbers_that_make_no_sense_are_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        order_statistics(**({"n": 100, "eps": 0.1, "sigma": 0.5, "alpha": 0.1} | numbers))  # type: ignore[arg-type]
