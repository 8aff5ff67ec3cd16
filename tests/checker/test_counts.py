"""The checker of counts against the certifiers, against SciPy, and against files that were tampered with."""

import copy
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from certbench.checker import counts
from certbench.checker.reading import Claim, Refused, Unreadable
from certbench.core import options
from certbench.core.claims import ABSTAIN
from certbench.core.classifier import Classifier
from certbench.core.threat import ThreatModel
from certbench.verifiers.smoothing.counting import SELECTION, Counter
from certbench.verifiers.smoothing.noise import differential_method
from certbench.verifiers.smoothing.noise.families import NOISES
from certbench.verifiers.smoothing.smoothing import Smoothing
from certbench.verifiers.smoothing.splitting import DeterministicSplitting, SplittingSmoothing

D = 6
BOX = (0.0, 1.0)


class Mean(torch.nn.Module):
    """Two classes by the mean of the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        mean = x.flatten(1).mean(dim=1, keepdim=True)
        return torch.cat([mean - 0.45, 0.45 - mean], dim=1)


CLASSIFIER = Classifier(Mean().eval(), (D,), 2, "mean")


@dataclass(frozen=True, eq=False)
class Counted(Counter):
    """A counter with counts that are given: those of the selection and those of the estimation."""

    rows: tuple[list[list[int]], list[list[int]]] = ([], [])

    def count(
        self, x: Float[torch.Tensor, "n ..."], draws: int, seeds: Sequence[int], phase: int
    ) -> Int[torch.Tensor, "n classes"]:
        """The rows of one phase."""
        del x, draws, seeds
        return torch.tensor(self.rows[0 if phase == SELECTION else 1])


def draws(rng: np.random.Generator, n: int, many: int) -> list[list[int]]:
    """Counts of four classes, of which some draws are missing: they were not finite."""
    shares = rng.dirichlet([0.3, 0.3, 0.1, 0.1, 0.01], many)
    return [[int(count) for count in rng.multinomial(n, share)[:4]] for share in shares]


def made(
    spec: Mapping[str, Any], threat: ThreatModel, rng: np.random.Generator, many: int
) -> Iterator[tuple[Claim, dict[str, Any]]]:
    """Certificates of `Smoothing` from random counts, the claims with a radius."""
    certifier = options.build({"name": "smoothing", **spec})
    assert isinstance(certifier, Smoothing)
    estimation = draws(rng, certifier.n, many)
    selection = [[1 if label == int(np.argmax(row)) else 0 for label in range(4)] for row in estimation]
    x = torch.from_numpy(rng.random((many, D)))
    state = certifier.prepare(CLASSIFIER, threat)
    known = {field.name: getattr(state.counter, field.name) for field in fields(state.counter)}
    counter = Counted(**known, rows=(selection, estimation))
    found = certifier.certify(replace(state, counter=counter), x, list(range(many)))
    for i in range(many):
        if found.prediction[i] != ABSTAIN:
            yield claimed(x[i].numpy(), threat, found, i), {"kind": "counts", **found.evidence[i]}


def claimed(x: np.ndarray, threat: ThreatModel, found: Any, i: int, guarantee: str = "probabilistic") -> Claim:
    """What a file would claim of input i."""
    prediction, radius = int(found.prediction[i]), float(found.radius[i])
    return Claim(x.ravel(), threat.p, threat.domain, prediction, radius, "smoothed", guarantee)


def refused(claim: Claim, evidence: Any) -> str:
    """Why evidence is refused; "" if it is not."""
    try:
        return counts.check(claim, evidence, None) or ""
    except (Refused, Unreadable) as error:
        return str(error)


@pytest.fixture
def sample() -> tuple[Claim, dict[str, Any]]:
    """One certificate."""
    found = made({"n": 1000}, ThreatModel(2.0), np.random.default_rng(3), 20)
    return next(one for one in found if one[1]["p_upper"] < 1 - one[1]["p_lower"])


def test_agrees_with_the_certifier_on_a_thousand_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "tail", functools.lru_cache(4)(counts.tail))  # each is checked twice
    rng, accepted = np.random.default_rng(0), 0
    settings = ((90, 60, 0.05, "one-vs-rest"), (90, 300, 0.001, "two-class"), (5, 50_000, 1e-6, "two-class"))
    for name, p, (many, n, alpha, rule) in itertools.product(counts.NOISES, (1.0, 2.0, math.inf), settings):
        noise = {"name": name, "sigma": float(rng.random()) + 0.01}
        threat = ThreatModel(p, BOX if rng.random() < 0.5 else None)
        for claim, evidence in made({"n": n, "alpha": alpha, "rule": rule, "noise": noise}, threat, rng, many):
            assert counts.check(claim, evidence, None) is None
            accepted += 1
            assert refused(replace(claim, radius=claim.radius + 1e-8 * max(claim.radius, noise["sigma"])), evidence)
    assert accepted >= 1000


def test_every_number_that_is_moved_the_wrong_way_is_refused(sample: tuple[Claim, dict[str, Any]]) -> None:
    claim, evidence = sample
    top = claim.prediction
    rival = max((label for label in range(4) if label != top), key=lambda label: evidence["counts"][label])
    assert refused(claim, evidence) == ""
    wrong: dict[str, list[Any]] = {
        "kind": [],
        "n": [sum(evidence["counts"]) - 1, evidence["n"] + 50, 1000.0, True, -1],
        "alpha": [evidence["alpha"] / 2, 0, 1, -0.1, 2, "0.1", math.nan, None],
        "rule": ["one-vs-all", "one-vs-rest", 1],
        "p_lower": [math.nextafter(evidence["p_lower"] * (1 + 1e-9), 1), 1.0, 0.0, math.nan],
        "p_upper": [evidence["p_upper"] * (1 - 1e-9), 0.0, -0.1, 0.7],
        "sigma": [evidence["sigma"] * 2, evidence["sigma"] / 2, -evidence["sigma"], 0],
        "scale": [evidence["scale"] * 2, evidence["scale"] / 2, -evidence["scale"]],
        "noise": [{"name": "laplace", "sigma": evidence["sigma"]}, {"name": "gaussian"}, "gaussian", [], {"name": []}],
        "dimension": [D + 1, D - 1, "6"],
        "seed": [7, "7", "g" * 32],
        "counts": [evidence["counts"][:-1], [-1, *evidence["counts"][1:]], 5, [], [evidence["n"]]],
        "selection": [evidence["selection"][::-1] if 3 - top != top else [], [0] * 4, [1], None],
    }
    assert wrong.keys() == evidence.keys()
    for name, values in wrong.items():
        without = {key: value for key, value in evidence.items() if key != name}
        assert name == "kind" or refused(claim, without), name
        for value in values:
            assert refused(claim, {**evidence, name: value}), (name, value)
    fewer, more = copy.deepcopy(evidence), copy.deepcopy(evidence)
    fewer["counts"][top] -= 1
    more["counts"][rival] += 1
    assert refused(claim, fewer)
    assert refused(claim, more) or sum(evidence["counts"]) < evidence["n"]
    assert refused(claim, {**evidence, "more": 1}) and refused(claim, {**evidence, "shared": False})
    assert not refused(claim, {**evidence, "shared": True})


def test_every_part_of_the_claim_counts(sample: tuple[Claim, dict[str, Any]]) -> None:
    claim, evidence = sample
    assert refused(replace(claim, prediction=(claim.prediction + 1) % 4), evidence)
    assert refused(replace(claim, norm=math.inf), evidence)
    assert refused(replace(claim, subject="base"), evidence)
    assert refused(replace(claim, guarantee="sound"), evidence)
    assert refused(replace(claim, input=claim.input[:-1]), evidence)
    assert refused(replace(claim, radius=math.nextafter(claim.radius * (1 + 1e-9), math.inf)), evidence)


def test_the_largest_radius_is_the_largest_that_is_accepted(sample: tuple[Claim, dict[str, Any]]) -> None:
    claim, evidence = sample
    bound = counts.largest(claim, evidence, *counts.probabilities(claim, evidence))
    below = float(bound) if Fraction(float(bound)) <= Fraction(bound) else math.nextafter(float(bound), 0)
    assert claim.radius <= below
    assert refused(replace(claim, radius=below), evidence) == "" and refused(
        replace(claim, radius=math.nextafter(below, 9)), evidence
    )
    found = counts.read_votes(evidence)
    assert found.top == claim.prediction and found.n == evidence["n"]
    assert found.votes == evidence["counts"][found.top] and found.votes + found.rivals <= found.n


def test_probability_one_ulp_too_high_is_refused_where_nothing_was_left() -> None:
    """p = 0.001^(1/1000) rounded up is no bound; rounded down it is one."""
    exact = Fraction(0.001)
    p = math.exp(math.log(0.001) / 1000)
    for _ in range(100):
        p = math.nextafter(p, 0) if Fraction(p) ** 1000 > exact else p
    assert counts.tail(1000, 1000, Fraction(p)) <= exact
    while Fraction(p) ** 1000 <= exact:
        p = math.nextafter(p, 1)
    assert counts.tail(1000, 1000, Fraction(p)) > exact


def test_tails_are_those_of_scipy_and_of_rational_arithmetic() -> None:
    rng = np.random.default_rng(1)
    for n in (1, 3, 10, 100, 1000, 100_000, 1_000_000):
        for _ in range(5):
            p = float(rng.random())
            k = min(n, max(1, round(n * p + rng.uniform(-1, 8) * math.sqrt(n * p * (1 - p)))))
            assert float(counts.tail(k, n, Fraction(p))) == pytest.approx(binom.sf(k - 1, n, p), rel=1e-12)
            if n <= 100:
                q = Fraction(p)
                exact = sum(math.comb(n, i) * q**i * (1 - q) ** (n - i) for i in range(k, n + 1))
                assert exact <= Fraction(counts.tail(k, n, q)) <= exact * (1 + Fraction(1, 10**20))


def test_quantiles_and_heights_are_those_of_scipy_rounded_down() -> None:
    rng = np.random.default_rng(2)
    for p in [0.5, 1e-20, 1e-6, 1 - 1e-12, *rng.random(20).tolist()]:
        found = float(counts.quantile(Fraction(p)))
        exact = float(ndtri(p)) if p < 0.9 else -float(ndtri(1 - p))
        assert found == pytest.approx(exact, rel=1e-12, abs=1e-300) and found <= exact + 1e-15 * abs(exact)
        low, high = counts.upper_tail(abs(counts.quantile(Fraction(p))))
        assert low <= high and float(low) == pytest.approx(float(ndtr(-abs(found))), rel=1e-12)
        for d in (1, 2, 3, 10, 101, 784):
            tail = min(p, 1 - p)
            assert float(counts.height(Fraction(p), d)) == pytest.approx(
                math.copysign(differential_method.laplace_linf(tail, d), p - 0.5), rel=1e-12
            )


def test_draws_without_a_vote_are_a_rival() -> None:
    """60 of 100 for the class, 40 for none: as if another class had them."""
    found = next(made({"n": 1000}, ThreatModel(2.0), np.random.default_rng(3), 20))
    claim, evidence = found
    votes = [0, 0, 0, 0]
    votes[claim.prediction] = 600
    smoothing = Smoothing(n=1000)
    low, high = smoothing.probabilities(claim.prediction, votes, 1000)
    radius = smoothing.noise.radius(low, high, 2.0, D)
    fair = {**evidence, "counts": votes, "p_lower": low, "p_upper": high}
    assert refused(replace(claim, radius=radius), fair) == ""
    low, high = smoothing.probabilities(claim.prediction, votes, 600)
    unfair = {**fair, "p_upper": high}
    assert "p_upper" in refused(replace(claim, radius=radius), unfair)


@pytest.mark.parametrize("name", sorted(set(NOISES) - set(counts.NOISES)))
def test_other_noises_are_refused(name: str, sample: tuple[Claim, dict[str, Any]]) -> None:
    claim, evidence = sample
    noise = options.describe(Smoothing(noise=NOISES[name]()))["noise"]
    assert "not re-checkable" in refused(claim, {**evidence, "noise": noise})


def test_noise_at_a_hidden_layer_is_refused(sample: tuple[Claim, dict[str, Any]]) -> None:
    claim, evidence = sample
    assert "hidden layer" in refused(claim, {**evidence, "layer": "0", "constants": {"2": 0.1}})


def test_splitting_noise() -> None:
    x, threat = torch.rand(8, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64), ThreatModel(1.0)
    grid = (x * 16).round() / 16
    sampled, shifted, published = (
        certifier.certify(certifier.prepare(CLASSIFIER, threat), points, list(range(8)))
        for certifier, points in (
            (SplittingSmoothing(n=1000), x),
            (DeterministicSplitting(lam=2.0, grid=16, points="all"), grid),
            (DeterministicSplitting(lam=2.0, grid=16), grid),
        )
    )
    accepted = 0
    for found, points, guarantee in ((sampled, x, "probabilistic"), (shifted, grid, "sound")):
        for i in range(8):
            claim, evidence = claimed(points[i].numpy(), threat, found, i, guarantee), found.evidence[i]
            if claim.radius == 0:
                continue
            accepted += 1
            evidence = {"kind": "counts", **evidence}
            assert refused(claim, evidence) == ""
            assert refused(replace(claim, radius=claim.radius * (1 + 1e-7)), evidence)
            assert refused(replace(claim, norm=2.0, radius=claim.radius * 1.01), evidence)
            assert refused(replace(claim, prediction=1 - claim.prediction), evidence)
            assert refused(claim, {**evidence, "lam": evidence["lam"] / 2})
            fewer = list(evidence["counts"])
            fewer[claim.prediction] -= 40
            assert refused(claim, {**evidence, "counts": fewer})
    assert accepted >= 8
    claim = claimed(grid[0].numpy(), threat, published, 0, "sound")
    assert "on the grid" in refused(claim, {"kind": "counts", **published.evidence[0]})
