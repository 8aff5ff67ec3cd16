import math
from dataclasses import replace

import pytest
import torch
from scipy.special import ndtr

import certbench
from certbench import ABSTAIN, L1, L2, Classifier, ConfigError, Linf, UnsupportedError
from certbench.testing import inputs, network
from certbench.verifiers.smoothing import counting
from certbench.verifiers.smoothing.adaptive import AdaptiveSmoothing, needed
from certbench.verifiers.smoothing.confidence import scores
from certbench.verifiers.smoothing.counting import ESTIMATION, SELECTION, Counter, tally
from certbench.verifiers.smoothing.noise.families import NOISES, Gaussian, Laplace, Uniform
from certbench.verifiers.smoothing.smoothing import Smoothing
from tests.support.halfspaces import Broken, halfspace, points
from tests.support.watched import SEEDS, Watched

pytestmark = pytest.mark.machine


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_the_probability_needed_is_the_smallest_that_reaches_the_radius(name: str, p: float) -> None:
    noise = NOISES[name](0.5)
    for radius in (0.01, 0.05):
        p0 = needed(noise, radius, p, 9)
        assert p0 is not None
        assert noise.radius(p0, 1 - p0, p, 9) >= radius
        below = p0 - 1e-9
        assert noise.radius(below, 1 - below, p, 9) < radius


def test_the_probability_needed_has_closed_forms() -> None:
    for radius in (0.1, 0.5, 2.0):
        gauss, laplace = needed(Gaussian(0.5), radius, 2.0, 9), needed(Laplace(0.5), radius, 1.0, 9)
        assert gauss == pytest.approx(ndtr(radius / 0.5), abs=1e-10)
        assert laplace == pytest.approx(1 - math.exp(-radius * math.sqrt(2) / 0.5) / 2, abs=1e-10)
        assert gauss is not None and gauss >= ndtr(radius / 0.5)
    assert needed(Gaussian(0.5), 0.3, math.inf, 9) == pytest.approx(ndtr(0.9 / 0.5), abs=1e-10)
    assert needed(Uniform(1.0), math.sqrt(3) * 1.001, 1.0, 9) is None  # a box certifies half its side at most


def test_a_radius_beyond_the_true_one_is_certified_no_more_often_than_alpha() -> None:
    certifier = AdaptiveSmoothing(Gaussian(0.5), 0.3, n=1000, n0=20, alpha=0.4, step=50)
    certificate = certbench.certify(certifier, halfspace(), points(150, 0.2999), L2)
    wrong = int((certificate.radius > 0).sum())
    assert 2 <= wrong <= 83  # Binomial(150, 0.4) is above 83 with probability 1e-4
    assert {e["answer"] for e in certificate.evidence} == {"at least", "less", "open"}


def test_clear_cases_take_few_draws_and_the_radius_is_the_one_asked_for() -> None:
    for first, answer in ((0.6, "at least"), (0.1, "less")):
        certifier = AdaptiveSmoothing(Gaussian(0.5), 0.3, n=100_000, step=50)
        certificate = certbench.certify(certifier, halfspace(), points(10, first), L2)
        assert {e["answer"] for e in certificate.evidence} == {answer}
        assert max(e["draws"] for e in certificate.evidence) < 1500
        certified = answer == "at least"
        assert certificate.radius.tolist() == [0.3 if certified else 0.0] * 10
        assert certificate.prediction.tolist() == [1 if certified else ABSTAIN] * 10


@pytest.mark.parametrize("first", [0.2, 0.28, 0.31, 0.4])
def test_answers_are_the_first_of_the_sequence_of_looks(first: float) -> None:
    certifier = AdaptiveSmoothing(Gaussian(0.5), 0.3, n=1030, n0=30, alpha=0.05, step=100)
    classifier, x = halfspace(), points(4, first)
    state = certifier.prepare(classifier, L2)
    certificate = certifier.certify(state, x, range(4))
    for i, e in enumerate(certificate.evidence):
        drawn = list(Counter(classifier, Gaussian(0.5), None, None).logits(x[i], 1030, i, ESTIMATION, 100))
        assert sum(map(len, drawn)) == 1030
        answers, hopeless = [], []
        votes = torch.stack([tally(logits)[e["class"]] for logits in drawn]).cumsum(0).tolist()
        for k, t in zip(votes, [*range(100, 1001, 100), 1030], strict=True):
            answers.append((scores.decide(k, t, state.p0, 0.05), k, t))
            hopeless.append(scores.decide(k + 1030 - t, 1030, state.p0, 0.05) is not True)
        decided = next((j for j, (answer, *_) in enumerate(answers) if answer is not None), len(answers))
        stop = min(decided, hopeless.index(True) if True in hopeless else len(answers))
        answer, k, t = answers[min(stop, len(answers) - 1)]
        assert (e["successes"], e["draws"]) == (k, t)
        assert e["answer"] == {True: "at least", False: "less", None: "open"}[answer]
        if stop < decided:  # what sampling on would have found certifies nothing either
            assert not any(later is True for later, *_ in answers[stop:])


def test_certificates_agree_with_a_fixed_number_of_draws_where_both_are_sure() -> None:
    classifier, x = network("mlp"), inputs(12)
    fixed = certbench.certify(Smoothing(Gaussian(0.1), n=4000, rule="one-vs-rest"), classifier, x, L2)
    asked = certbench.certify(AdaptiveSmoothing(Gaussian(0.1), 0.05, n=4000), classifier, x, L2)
    certified = asked.radius > 0
    assert certified.any() and not certified.all()
    assert (fixed.radius[certified] > 0.04).all()
    assert (fixed.radius[~certified] < 0.06).all()
    assert torch.equal(asked.prediction[certified], fixed.prediction[certified])


def test_selection_is_independent_and_the_seed_is_the_inputs_own() -> None:
    certifier = AdaptiveSmoothing(Gaussian(0.5), 0.3, n=500, n0=70)
    state = certifier.prepare(halfspace(), L2)
    seen: list[tuple[int, int, int]] = []
    plain = Counter.logits

    def noted(self: Counter, point: torch.Tensor, draws: int, seed: int, phase: int, size: int, start: int = 0):  # type: ignore[no-untyped-def]
        seen.append((draws, seed, phase))
        return plain(self, point, draws, seed, phase, size, start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Counter, "logits", noted)
        certificate = certifier.certify(state, points(2, 0.5), [3, 4])
    assert seen == [(70, 3, SELECTION), (500, 3, ESTIMATION), (70, 4, SELECTION), (500, 4, ESTIMATION)]
    assert [sum(e["selection"]) for e in certificate.evidence] == [70, 70]


def test_draws_without_a_vote_are_failures() -> None:
    classifier = Classifier(Broken().eval(), (4,), 2)
    certificate = certbench.certify(AdaptiveSmoothing(Gaussian(1.0), 0.1, n=2000), classifier, points(2, 0.0), L2)
    assert (certificate.prediction == ABSTAIN).all()
    for e in certificate.evidence:
        assert 0.3 < e["successes"] / e["draws"] < 0.7


def test_what_no_draws_could_show_is_refused_with_a_reason() -> None:
    with pytest.raises(UnsupportedError, match="which 10 draws cannot show"):
        certbench.certify(AdaptiveSmoothing(n=10), halfspace(), points(1, 1.0), L2)
    with pytest.raises(UnsupportedError, match=r"Uniform noise of sigma 0.25 .* L1 radius 1 at no probability"):
        certbench.certify(AdaptiveSmoothing(Uniform(), 1.0), halfspace(), points(1, 1.0), L1)
    with pytest.raises(UnsupportedError, match=r"Linf radius 0\.2 at probability 0\.945200708, which 100 draws"):
        certbench.certify(AdaptiveSmoothing(radius=0.2, n=100), halfspace(), points(1, 1.0), Linf)
    certificate = certbench.certify(AdaptiveSmoothing(radius=0.2, n=200), halfspace(), points(1, 2.0), Linf)
    assert certificate.radius.tolist() == [0.2]
    assert 120 < certificate.evidence[0]["draws"] <= 200


@pytest.mark.parametrize(("name", "value"), [("radius", 0.0), ("alpha", 1.0), ("n", 0), ("n0", 0), ("step", 0)])
def test_options_that_no_run_could_use_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError) as caught:
        AdaptiveSmoothing(**{name: value})  # type: ignore[arg-type]
    assert caught.value.path == (name,)


def test_another_radius_or_alpha_looks_at_known_draws_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_COUNTED", counting.OrderedDict())
    watched = Watched(network("mlp").module).eval()
    classifier, x = Classifier(watched, (1, 4, 4), 4), inputs(3)

    def ask(radius: float, alpha: float = 0.01, n: int = 2000) -> tuple[list[dict[str, object]], int]:
        """The evidence, and how many rows it took."""
        certifier = AdaptiveSmoothing(Gaussian(0.1), radius, n=n, n0=50, alpha=alpha, step=10)
        state = certifier.prepare(classifier, L2)
        state = replace(state, counter=replace(state.counter, key="content", content=False))  # of what is not watched
        watched.rows.zero_()  # type: ignore[operator]
        return list(certifier.certify(state, x, SEEDS[:3]).evidence), int(watched.rows)  # type: ignore[arg-type]

    first, rows = ask(0.05)
    assert rows == 3 * 50 + sum(e["draws"] for e in first)  # type: ignore[misc]
    assert ask(0.05) == (first, 0)
    stricter, more = ask(0.05, alpha=1e-6)
    assert more == sum(e["draws"] for e in stricter) - sum(e["draws"] for e in first) > 0  # type: ignore[misc]
    assert ask(0.05) == (first, 0)  # fewer than are known
    other, more = ask(0.02)
    assert more == sum(max(0, a["draws"] - b["draws"]) for a, b in zip(other, stricter, strict=True))  # type: ignore[operator]
    counting._COUNTED.clear()
    assert ask(0.05, alpha=1e-6)[0] == stricter
