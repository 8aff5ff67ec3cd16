"""Confidence statements about scores and shares."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import binom

from certbench.verifiers.smoothing.confidence import binomial
from certbench.verifiers.smoothing.confidence import scores as confidence
from certbench.verifiers.smoothing.confidence.scores import decide, log_evidence

BOUNDS = {
    "hoeffding": lambda mean, variance, n, alpha: confidence.hoeffding_lower(mean, n, alpha),
    "chernoff": lambda mean, variance, n, alpha: confidence.chernoff_lower(mean, n, alpha),
    "bernstein": confidence.bernstein_lower,
}


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("shape", [(0.02, 0.3), (30.0, 3.0), (0.5, 0.5)], ids=["rare", "narrow", "wide"])
def test_lower_bounds_of_a_mean_fail_no_more_often_than_alpha(name: str, shape: tuple[float, float]) -> None:
    stream = np.random.default_rng(1)
    truth = shape[0] / sum(shape)
    scores = stream.beta(*shape, size=(600, 40))
    below = [BOUNDS[name](float(row.mean()), float(row.var(ddof=1)), 40, 0.2) for row in scores]
    assert sum(bound > truth for bound in below) <= binom.isf(1e-4, 600, 0.2)
    assert np.mean(below) > truth - 0.6  # they say something


def test_votes_are_where_chernoff_is_nearly_exact() -> None:
    truth, n, alpha = 0.8, 200, 0.1
    counts = np.random.default_rng(2).binomial(n, truth, size=2000)
    wrong = {k: confidence.chernoff_lower(k / n, n, alpha) > truth for k in set(counts.tolist())}
    assert 0.01 * 2000 <= sum(wrong[k] for k in counts.tolist()) <= binom.isf(1e-4, 2000, alpha)


@pytest.mark.parametrize(("n", "caps"), [(10**3, (2.463, 2.103, 1.565)), (10**5, (3.811, 3.572, 2.519))])
def test_scores_that_all_are_1_reach_the_published_caps(n: int, caps: tuple[float, float, float]) -> None:
    bounds = [
        confidence.chernoff_lower(1.0, n, 0.001),
        confidence.bernstein_lower(1.0, 0.0, n, 0.001),
        confidence.hoeffding_lower(1.0, n, 0.001),
    ]
    assert ndtri(bounds) == pytest.approx(caps, abs=6e-4)
    assert 1 - 1e-8 < bounds[0] / 0.001 ** (1 / n) <= 1


@pytest.mark.parametrize("mean", [0.0, 0.01, 0.4, 0.97, 1.0])
@pytest.mark.parametrize("n", [2, 100, 10**6])
def test_bounds_are_ordered_and_mirror_each_other(mean: float, n: int) -> None:
    hoeffding, chernoff = confidence.hoeffding_lower(mean, n, 0.01), confidence.chernoff_lower(mean, n, 0.01)
    assert 0 <= hoeffding <= chernoff + 1e-9 <= mean + 1e-9
    assert confidence.chernoff_upper(1 - mean, n, 0.01) == pytest.approx(1 - chernoff, abs=1e-9)
    assert confidence.hoeffding_upper(1 - mean, n, 0.01) == pytest.approx(1 - hoeffding, abs=1e-9)
    upper = confidence.bernstein_upper(1 - mean, 0.1, n, 0.01)
    assert upper == pytest.approx(1 - confidence.bernstein_lower(mean, 0.1, n, 0.01), abs=1e-9)


def test_the_constant_of_bernsteins_bound_follows_from_its_two_parts() -> None:
    for n in (2, 3, 10, 1000):
        for variance in (0.0, 0.01, 0.25):
            log = math.log(2 / 0.05)
            deviation = math.sqrt(variance) + math.sqrt(2 * log / (n - 1))
            bennett = deviation * math.sqrt(2 * log / n) + log / (3 * n)
            width = math.sqrt(2 * variance * log / n) + 7 * log / (3 * (n - 1))
            assert bennett <= width  # so Theorem 4 is covered by Theorem 10 and Bennett's inequality
            wanted = max(0.0, 0.9 - width)
            assert confidence.bernstein_lower(0.9, variance, n, 0.05) == pytest.approx(wanted, abs=1e-11)


def test_impossible_scores_are_refused() -> None:
    for mean, n, alpha in ((1.1, 5, 0.1), (math.nan, 5, 0.1), (0.5, 0, 0.1), (0.5, 5, 0.0)):
        with pytest.raises(ValueError, match="no confidence bound"):
            confidence.hoeffding_lower(mean, n, alpha)
    with pytest.raises(ValueError, match="variance"):
        confidence.bernstein_lower(0.5, 0.1, 1, 0.1)


def test_evidence_is_the_ratio_of_the_mixture_and_never_above_it() -> None:
    for successes, trials, p in ((0, 1, Fraction(1, 2)), (3, 5, Fraction(1, 4)), (40, 41, Fraction(7, 8))):
        mixture = Fraction(1, math.factorial(trials))
        for i in [*range(successes), *range(trials - successes)]:
            mixture *= i + Fraction(1, 2)
        exact = mixture / (p**successes * (1 - p) ** (trials - successes))
        found = log_evidence(successes, trials, float(p))
        assert found == pytest.approx(math.log(exact), abs=1e-8)
        assert found <= math.log(exact)


def answered(p: float, p0: float, alpha: float, trials: int, wrong: bool, test: str = "mixture") -> float:
    """Exact probability that the sequence of decisions first answers `wrong` within so many trials."""
    alive, total = {0: 1.0}, 0.0
    for t in range(1, trials + 1):
        following: dict[int, float] = {}
        for k, mass in alive.items():
            for step, share in ((0, 1 - p), (1, p)):
                following[k + step] = following.get(k + step, 0.0) + mass * share
        if test == "mixture":
            answers = {k: decide(k, t, p0, alpha) for k in following}
        else:
            answers = {k: True if binomial.lower(k, t, alpha) >= p0 else None for k in following}
        total += math.fsum(mass for k, mass in following.items() if answers[k] is wrong)
        alive = {k: mass for k, mass in following.items() if answers[k] is None}
    return total


@pytest.mark.parametrize("p0", [0.5, 0.9])
def test_decisions_are_wrong_with_at_most_alpha_at_any_time(p0: float) -> None:
    assert 0.001 < answered(p0 - 1e-9, p0, 0.2, 150, wrong=True) <= 0.2
    assert 0.001 < answered(p0, p0, 0.2, 150, wrong=False) <= 0.2


def test_asking_a_bound_for_a_fixed_number_again_and_again_is_wrong_more_often() -> None:
    assert answered(0.5, 0.5 + 1e-9, 0.2, 40, wrong=True, test="fixed") > 0.25


def test_decisions_come_early_where_it_is_clear_and_nothing_overflows() -> None:
    assert decide(0, 0, 0.5, 0.001) is None
    assert decide(90, 100, 0.5, 0.001) is True
    assert decide(10, 100, 0.5, 0.001) is False
    assert decide(50, 100, 0.5, 0.001) is None
    assert decide(10**6, 10**6, 1 - 1e-9, 0.001) is None
    assert decide(6 * 10**8, 10**9, 0.5, 0.001) is True
    assert decide(0, 10**9, 1e-300, 0.001) is None
    assert decide(1, 1, 0.0, 0.001) is True
    assert decide(5, 5, 1.0, 0.001) is None
    assert decide(4, 5, 1.0, 0.001) is False


def test_a_confidence_sequence_is_what_decisions_exclude() -> None:
    for successes, trials in ((0, 0), (0, 20), (20, 20), (70, 100), (99_000, 100_000)):
        low, high = confidence.sequence(successes, trials, 0.01)
        assert (low == 0) == (successes == 0)
        assert (high == 1) == (successes == trials)
        assert low <= (successes / trials if trials else 0.5) <= high
        if low > 0:
            assert decide(successes, trials, low, 0.01) is True
            assert decide(successes, trials, low + 1e-6, 0.01) is None
            assert low <= binomial.lower(successes, trials, 0.01)
        if high < 1:
            assert decide(successes, trials, high, 0.01) is False
