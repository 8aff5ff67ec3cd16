"""Confidence statements, soft scores, and the older guarantees that Cohen's radius must not lie below."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from certbench.verifiers.smoothing.confidence import binomial, privacy
from certbench.verifiers.smoothing.confidence import scores as confidence
from certbench.verifiers.smoothing.confidence.scores import decide, log_evidence
from certbench.verifiers.smoothing.noise import gaussian_radius
from certbench.verifiers.smoothing.soft import Bound, SoftSmoothing, Sums, sample_classes, whole

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


def test_the_lipschitz_constant_of_smoothed_scores_is_attained_by_a_half_space() -> None:
    sigma = 0.7
    slopes = np.diff(ndtr(np.linspace(-1, 1, 2001) / sigma)) / 0.001
    assert gaussian_radius.lipschitz_constant(sigma) == pytest.approx(slopes.max(), rel=1e-6)
    stream = np.random.default_rng(0)
    for _ in range(20):  # no other score on the line has a steeper average
        centres, heights = np.sort(stream.uniform(-2, 2, 7)), stream.uniform(0, 1, 8)
        at = lambda x: heights @ np.diff(np.concatenate([[0], ndtr((centres - x) / sigma), [1]]))  # noqa: B023, E731
        assert abs(at(0.001) - at(-0.001)) / 0.002 <= gaussian_radius.lipschitz_constant(sigma)


def sums(scores: np.ndarray, top: int) -> Sums:
    units = whole(torch.from_numpy(scores), top).numpy().astype(object)
    return Sums(len(scores), tuple(units.sum(axis=0)), tuple((units**2).sum(axis=0)))


@pytest.mark.parametrize("bound", ["hoeffding", "chernoff", "bernstein"])
def test_bounds_of_scores_hold_together(bound: Bound) -> None:
    stream = np.random.default_rng(3)
    certifier = SoftSmoothing(alpha=0.3, bound=bound)
    truth = np.array([0.5, 0.3, 0.2])
    wrong = 0
    for _ in range(200):
        scores = stream.dirichlet(2 * truth, size=60)
        low, high = certifier.of_sums(sums(scores, 0), 0)
        wrong += low > 0.5 or high < 0.3
        assert low <= scores[:, 0].mean() and high >= scores[:, 1:].mean(axis=0).max() - 1e-9
    assert wrong <= binom.isf(1e-4, 200, 0.3)


def test_scores_that_are_not_finite_speak_against_the_class() -> None:
    scores, certifier = np.tile([0.9, 0.1], (1000, 1)), SoftSmoothing(alpha=0.01)
    good = certifier.of_sums(sums(scores, 0), 0)
    scores[:300] = math.nan
    bad = certifier.of_sums(sums(scores, 0), 0)
    assert good[0] > 0.85 and bad[0] < 0.63 < good[0]
    assert bad[1] > good[1]


def test_sampled_classes_are_drawn_with_their_scores() -> None:
    scores = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).expand(20_000, -1).clone()
    scores[-3:] = math.nan
    drawn = sample_classes(scores, np.random.default_rng(0))
    assert (drawn[-3:] == -1).all() and not (drawn == 1).any()
    for c in (0, 2, 3):
        share = float(scores[0, c])
        count = int((drawn == c).sum())
        assert binom.ppf(1e-5, 20_000, share) <= count <= binom.isf(1e-5, 20_000, share)


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
