import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import ndtri
from scipy.stats import binom, norm
from torch import Tensor, nn

import certbench
from certbench import ABSTAIN, L1, L2, Classifier, ConfigError, Linf
from certbench.testing import inputs, network
from certbench.verifiers.smoothing import counting
from certbench.verifiers.smoothing.confidence import binomial
from certbench.verifiers.smoothing.confidence import scores as confidence
from certbench.verifiers.smoothing.counting import ESTIMATION, SELECTION, Counter
from certbench.verifiers.smoothing.noise.families import Gaussian
from certbench.verifiers.smoothing.soft import UNIT, Bound, SoftSmoothing, Sums, sample_classes, whole
from tests.support.halfspaces import halfspace, points
from tests.support.watched import SEEDS, Watched

pytestmark = pytest.mark.machine

SCORES: tuple[Bound, ...] = ("chernoff", "hoeffding", "bernstein")
ALL: tuple[Bound, ...] = (*SCORES, "sampled")


def expected(beta: float, sigma: float, first: float) -> float:
    """E softmax_1 of the half-space classifier's logits (0, x_1 + noise)."""
    integrand = lambda z: norm.pdf(z) / (1 + math.exp(-beta * (first + sigma * z)))  # noqa: E731
    return float(quad(integrand, -12, 12, epsabs=1e-12, limit=200)[0])


@pytest.mark.parametrize("bound", ALL)
def test_bounds_miss_the_expected_score_no_more_often_than_alpha(bound: Bound) -> None:
    certifier = SoftSmoothing(sigma=0.5, beta=4.0, n=100, n0=20, alpha=0.1, bound=bound)
    truth = expected(4.0, 0.5, 0.3)
    certificate = certbench.certify(certifier, halfspace(), points(200, 0.3), L2)
    found = [e for e in certificate.evidence if e["class"] == 1]
    wrong = sum(e["p_lower"] > truth or e["p_upper"] < 1 - truth for e in found)
    assert len(found) > 170
    assert wrong <= 36  # Binomial(200, 0.1) is above 36 with probability 2e-4
    assert wrong >= 2 or bound != "sampled"  # exact bounds spend what they may, here 0.05 less what is discrete
    lows = np.array([e["p_lower"] for e in found])
    assert 0 < truth - lows.mean() < 0.3


@pytest.mark.parametrize("bound", ALL)
def test_at_the_boundary_certificates_are_as_rare_as_alpha(bound: Bound) -> None:
    certifier = SoftSmoothing(sigma=0.5, beta=4.0, n=50, n0=20, alpha=0.2, bound=bound)
    certificate = certbench.certify(certifier, halfspace(), points(150, 0.0), L2)
    assert int((certificate.radius > 0).sum()) <= 48  # Binomial(150, 0.2) is above 48 with probability 1e-4


def test_radii_approach_lemma_2_as_draws_grow_and_stay_below_the_boundary() -> None:
    truth = 0.5 * float(ndtri(expected(4.0, 0.5, 0.3)))
    errors = []
    for n in (1000, 16_000):
        certifier = SoftSmoothing(sigma=0.5, beta=4.0, n=n)
        radius = float(certbench.certify(certifier, halfspace(), points(1, 0.3), L2).radius[0])
        assert radius < truth < 0.3
        errors.append(truth - radius)
    assert errors[1] < errors[0] / 2.5
    assert errors[1] < 0.03


def moments(scores: np.ndarray) -> tuple[float, float]:
    return float(scores.mean()), float(scores.var(ddof=1))


def by_hand(scores: np.ndarray, top: int, alpha: float, bound: str) -> tuple[float, float]:
    """The bounds of scores that were kept, each rival's at the alpha of its own that it needs."""
    n, own = len(scores), moments(scores[:, top])
    rivals = [moments(column) for c, column in enumerate(scores.T) if c != top]
    if bound == "bernstein":
        share = alpha / 2 / len(rivals)
        low = confidence.bernstein_lower(*own, n, alpha / 2)
        return low, min(max(confidence.bernstein_upper(*rival, n, share) for rival in rivals), 1 - low)
    lower, upper = getattr(confidence, f"{bound}_lower"), getattr(confidence, f"{bound}_upper")
    low = lower(own[0], n, alpha / 2)
    return low, min(max(upper(mean, n, alpha / 2) for mean, _ in rivals), 1 - low)


@pytest.mark.parametrize("bound", SCORES)
def test_bounds_from_sums_are_those_of_the_scores_themselves(bound: Bound) -> None:
    certifier = SoftSmoothing(sigma=0.3, beta=2.0, n=1700, alpha=0.01, bound=bound)
    classifier, x = network("cnn"), inputs(3)
    counter = Counter(classifier, Gaussian(0.3), None, None)
    for point, seed in zip(x, (1, 2, 3), strict=True):
        logits = torch.cat(list(counter.logits(point, 1700, seed, ESTIMATION, 1000)))
        scores = (2.0 * logits.double()).softmax(dim=1)
        top = int(scores.mean(dim=0).argmax())
        low, high = by_hand(scores.numpy(), top, 0.01, bound)
        found_low, found_high = certifier.of_sums(certifier.sum(counter, point, seed, top), top)
        assert low - 1e-6 < found_low <= low + 1e-13
        assert high - 1e-13 <= found_high < high + 1e-6


def test_sums_are_exact_rounded_against_the_class_and_of_constant_size() -> None:
    scores = torch.tensor([[1.0, 0.0], [0.3, 0.7], [math.nan, math.nan], [1 / 3, 2 / 3]], dtype=torch.float64)
    units = whole(scores, 0)
    assert units.tolist()[0] == [UNIT, 0]
    assert units.tolist()[1] == [math.floor(0.3 * UNIT), math.ceil(0.7 * UNIT)]
    assert units.tolist()[2] == [0, UNIT]
    assert whole(scores, 1).tolist()[2] == [UNIT, 0]
    values = [math.floor(s * UNIT) for s in (1.0, 0.3, 0.0, 1 / 3)]
    sums = Sums(4, (sum(values),), (sum(v * v for v in values),))
    assert sums.mean(0) == pytest.approx(np.mean([v / UNIT for v in values]), rel=1e-15)
    assert sums.variance(0) == pytest.approx(np.var([v / UNIT for v in values], ddof=1), rel=1e-12)


def test_squares_of_a_million_full_scores_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of the largest size, every score 1 or just below: sums reach their largest values."""

    def many(self: Counter, *arguments: object) -> list[Tensor]:
        return [torch.tensor([[50.0, 0.0]]).expand(1000, 2)] * 1000

    monkeypatch.setattr(Counter, "logits", many)
    certifier = SoftSmoothing(n=10**6, bound="bernstein")
    for top, unit in ((0, UNIT - 1), (1, UNIT)):  # 1 / (1 + exp(-50)) rounds to 1; 50 becomes 20 below
        monkeypatch.setattr(SoftSmoothing, "scores", lambda self, logits: torch.tensor([[1 - 2.0**-31, 2.0**-31]],
                            dtype=torch.float64).expand(1000, 2))  # fmt: skip
        sums = certifier.sum(Counter(halfspace(), Gaussian(), None, None), torch.zeros(4), 0, top)
        assert sums.sums[0] == unit * 10**6
        assert sums.squares[0] == unit**2 * 10**6
        assert sums.variance(0) == 0


def test_sampled_classes_are_multinomial_and_not_the_argmax() -> None:
    certifier = SoftSmoothing(sigma=0.5, beta=4.0, n=20_000, bound="sampled")
    counter = Counter(halfspace(), Gaussian(0.5), None, None)
    drawn = certifier.sample(counter, points(1, 0.3)[0], 7)
    assert sum(drawn) == 20_000
    truth = expected(4.0, 0.5, 0.3)
    assert abs(drawn[1] / 20_000 - truth) < 4 * math.sqrt(truth * (1 - truth) / 20_000)
    assert norm.cdf(0.3 / 0.5) - truth > 0.03  # where votes would be
    low, high = certifier.of_counts(drawn, 1)
    assert low == binomial.lower(drawn[1], 20_000, 0.0005)
    assert 1 - low - 1e-12 < high <= 1 - low
    three = certifier.of_counts([15_000, 1500, 2500], 0)  # 1000 gave no class
    assert three == (binomial.lower(15_000, 20_000, 0.0005), binomial.upper(2500, 20_000, 0.0005))
    assert certifier.of_counts([15_000, 500, 500], 0)[1] == binomial.upper(4000, 20_000, 0.0005)


@pytest.mark.parametrize("bound", ALL)
def test_evidence_rechecks_the_claim(bound: Bound) -> None:
    certifier = SoftSmoothing(sigma=0.5, beta=2.0, n=1500, bound=bound)
    for threat in (L1, L2, Linf):
        certificate = certbench.certify(certifier, halfspace(), points(2, 0.4), threat)
        for radius, e in zip(certificate.radius.tolist(), certificate.evidence, strict=True):
            certifier_again = SoftSmoothing(e["sigma"], e["beta"], e["n"], 100, e["alpha"], e["bound"])
            if bound == "sampled":
                bounds = certifier_again.of_counts(e["counts"], e["class"])
            else:
                variances = e.get("variances", [0.0, 0.0])
                squares = tuple(round(v * (e["n"] - 1) * UNIT**2 + s**2 / e["n"])
                                for v, s in zip(variances, e["sums"], strict=True))  # fmt: skip
                bounds = certifier_again.of_sums(Sums(e["n"], tuple(e["sums"]), squares), e["class"])
            assert bounds == pytest.approx((e["p_lower"], e["p_upper"]), abs=1e-9)
            exact = 0.25 * float(ndtri(e["p_lower"]) - ndtri(e["p_upper"])) / (2 if threat is Linf else 1)
            assert 0 < radius <= exact
            assert radius == pytest.approx(exact, rel=1e-9)


def test_selection_and_estimation_see_different_noise_and_chernoff_and_sampled_the_same() -> None:
    counter = Counter(halfspace(), Gaussian(1.0), None, None)
    one, two = (torch.cat(list(counter.logits(points(1, 0.0)[0], 1000, 3, phase, 1000)))[:, 1]
                for phase in (SELECTION, ESTIMATION))  # fmt: skip
    assert len(np.intersect1d(one.numpy(), two.numpy())) < 50  # float32 draws collide now and then
    seen: list[tuple[int, int]] = []

    class Recorded(Counter):
        def logits(self, point: Tensor, draws: int, seed: int, phase: int, size: int, start: int = 0):  # type: ignore[no-untyped-def]
            seen.append((draws, phase))
            return super().logits(point, draws, seed, phase, size, start)

    for bound in ("chernoff", "sampled"):
        certifier = SoftSmoothing(n=300, n0=70, bound=bound)
        state = certifier.prepare(halfspace(), L2)
        recorded = Recorded(state.counter.classifier, state.counter.noise, None, None)
        certifier.certify(replace(state, counter=recorded), points(1, 0.3), [1])
    assert seen == [(70, SELECTION), (300, ESTIMATION)] * 2


def test_another_beta_certifies_another_function_and_a_large_one_the_vote() -> None:
    classifier, x = network("mlp"), inputs(4)
    soft_, hard = (
        certbench.certify(SoftSmoothing(beta=beta, n=2000, bound="sampled"), classifier, x, L2) for beta in (0.1, 1e9)
    )
    votes = certbench.certify({"name": "smoothing", "n": 2000}, classifier, x, L2)
    assert [e["counts"] for e in hard.evidence] == [e["counts"] for e in votes.evidence]
    assert torch.equal(hard.radius, votes.radius)
    assert (soft_.radius < votes.radius).any()


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0] + 9, -x[:, 0]], 1).masked_fill(x[:, :1] > 0, math.inf)


@pytest.mark.parametrize("bound", ALL)
def test_draws_that_are_not_finite_count_against_every_class(bound: Bound) -> None:
    """Half of the draws are finite and sure of class 0."""
    classifier = Classifier(Broken().eval(), (4,), 2)
    certificate = certbench.certify(SoftSmoothing(n=1000, beta=9.0, bound=bound), classifier, points(3, 0.0), L2)
    assert (certificate.prediction == ABSTAIN).all()
    assert [e["class"] for e in certificate.evidence] == [0, 0, 0]
    for e in certificate.evidence:
        counts = e.get("counts", [units / UNIT for units in e.get("sums", [])])
        assert 400 < counts[0] < 600
        assert counts[1] == (0 if bound == "sampled" else pytest.approx(1000 - counts[0], abs=1e-3))


@pytest.mark.parametrize(("name", "value"), [("sigma", 0.0), ("beta", math.inf), ("n", 1), ("n0", 0), ("alpha", 1.0)])
def test_options_that_no_run_could_use_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        SoftSmoothing(**{name: value})  # type: ignore[arg-type]
    assert caught.value.path == (name,)
    assert get_args(Bound) == ALL


def test_another_bound_alpha_or_norm_costs_no_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_COUNTED", counting.OrderedDict())
    watched = Watched(network("mlp").module).eval()
    classifier, x = Classifier(watched, (1, 4, 4), 4), inputs(3)

    def passes(certifier: SoftSmoothing, threat: certbench.ThreatModel) -> int:
        state = certifier.prepare(classifier, threat)
        state = replace(state, counter=replace(state.counter, key="content", content=False))  # of what is not watched
        watched.rows.zero_()  # type: ignore[operator]
        certificate = certifier.certify(state, x, SEEDS[:3])
        rows = int(watched.rows)  # type: ignore[arg-type]
        alone = certifier.certify(certifier.prepare(classifier, threat), x, SEEDS[:3])
        assert list(certificate.evidence) == list(alone.evidence)
        return rows

    assert passes(SoftSmoothing(n=1500), L2) == 3 * (1000 + 2000)
    for threat in (L1, L2, Linf):
        for bound in SCORES:
            assert passes(SoftSmoothing(n=1500, alpha=0.1, bound=bound), threat) == 0
    assert passes(SoftSmoothing(n=3000), L2) == 3 * 2000
    assert passes(SoftSmoothing(n=3000, bound="sampled"), L2) == 3 * 3000
    assert passes(SoftSmoothing(n=3000, bound="sampled", alpha=0.5), L1) == 0
    assert passes(SoftSmoothing(n=3000, beta=2.0), L2) == 3 * 4000  # another function


def test_sums_that_were_rounded_for_another_class_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_COUNTED", counting.OrderedDict())
    counter, certifier = Counter.of(network("mlp"), Gaussian(0.25)), SoftSmoothing(n=1500)
    first, second = (certifier.sum(counter, inputs(1)[0], 1, top) for top in (0, 1))
    assert first.sums[0] < second.sums[0] and first.sums[1] > second.sums[1]
    counting._COUNTED.clear()
    assert certifier.sum(counter, inputs(1)[0], 1, 1) == second


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
