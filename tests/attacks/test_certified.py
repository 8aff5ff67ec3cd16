"""Certificates that are held against attacks: a wrong certifier is found out, a right one is left alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import ABSTAIN, L0, L1, L2, Certificate, Certifier, Classifier, Guarantee, Linf, Outcome, ThreatModel
from certbench.attacks.certified import SHARES
from certbench.errors import ConfigError, ContradictionError

pytestmark = pytest.mark.machine


def plane() -> Classifier:
    """A linear classifier of two classes, whose radii are distances to a plane."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 2)).double().eval().requires_grad_(False)
    return Classifier(module, (4,), 2)


def exact(classifier: Classifier, x: Tensor, threat: ThreatModel) -> Tensor:
    weight, z = classifier.module[0].weight, classifier(x)  # type: ignore[index]
    normal = (weight[0] - weight[1]).abs()  # type: ignore[index]
    if threat.p == 0:
        return torch.zeros(len(x), dtype=torch.float64)  # one coordinate, changed by enough, is a counterexample
    return (z[:, 0] - z[:, 1]).abs() / torch.linalg.vector_norm(normal, ord=threat.q)


@dataclass(frozen=True)
class Times(Certifier[Any]):
    """The exact radius of a linear classifier, times a factor; in L0, so many coordinates."""

    factor: float = 1.0
    shift: int = 0

    guarantee = Guarantee.SOUND
    norms = frozenset({0.0, 1.0, 2.0, math.inf})

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> Any:
        return classifier, threat

    def certify(self, state: Any, x: Tensor, seeds: Sequence[int]) -> Certificate:
        classifier, threat = state
        radius = exact(classifier, x, threat) * self.factor if threat.p else torch.full((len(x),), self.factor)
        return Certificate.of((classifier(x).argmax(dim=1) + self.shift) % 2, radius)


def points(n: int = 3) -> Tensor:
    return torch.rand(n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("threat", [L1, L2, Linf, L2.within(-5, 5), L0.within(-50, 50)], ids=str)
def test_a_certifier_that_is_ten_times_too_large_is_found_out(threat: ThreatModel) -> None:
    certifier = Times(10.0 if threat.p else 1.0)
    silent = certbench.certify(certifier, plane(), points(), threat)
    assert (silent.radius > 0).all()
    with pytest.raises(ContradictionError, match=r"3 of 3 radii are contradicted; first, of input 0: a radius of"):
        certbench.certify(certifier, plane(), points(), threat, attack=True)
    rows = certbench.certify(certifier, plane(), points(), threat, attack=True, throw=False)
    assert rows.outcome == (Outcome.FAILED,) * 3 and rows.radius.tolist() == [0.0] * 3
    assert (rows.prediction == ABSTAIN).all() and all(one["reason"].startswith("contradicted") for one in rows.evidence)
    assert (rows.upper < silent.radius).all() or threat.p == 0


@pytest.mark.parametrize("threat", [L1, L2, Linf, Linf.within(-5, 5)], ids=str)
def test_a_right_certifier_keeps_its_radii_and_gets_distances(threat: ThreatModel) -> None:
    certifier, right = Times(1 - 1e-9), exact(plane(), points(), threat)
    found = certbench.certify(certifier, plane(), points(), threat, attack=True)
    assert torch.equal(found.radius, certbench.certify(certifier, plane(), points(), threat).radius)
    assert (found.upper >= right * (1 - 1e-12)).all() and (found.upper >= found.radius).all()
    assert all(one["attack"] and "failed" not in one for one in found.evidence)


def test_a_certificate_of_another_class_is_found_out() -> None:
    with pytest.raises(ContradictionError, match="but the classifier's is"):
        certbench.certify(Times(0.5, shift=1), plane(), points(), L2, attack=True)


def test_nothing_is_claimed_nothing_is_contradicted() -> None:
    found = certbench.certify(Times(0.0), plane(), points(), L2, attack=True)
    assert set(found.outcome) == {Outcome.COMPLETED} and found.upper.isfinite().all()
    assert len(certbench.certify(Times(), plane(), points(0), L2, attack=True)) == 0


def test_our_own_certifiers_pass() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    for name in ("crown", "lipschitz"):
        found = certbench.certify(name, Classifier(module, (4,), 3), points(), L2.within(0, 1), attack=True)
        assert set(found.outcome) == {Outcome.COMPLETED}


@dataclass(frozen=True)
class Still(Times):
    """It proves nothing about any classifier."""

    def certify(self, state: Any, x: Tensor, seeds: Sequence[int]) -> Certificate:
        return Certificate.of(state[0](x).argmax(dim=1), torch.zeros(len(x)))


class Stepped(nn.Module):
    """A step function, without a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        above = (x.sum(dim=1) > 0).to(x)
        return torch.stack([above, 1 - above], dim=1)


def test_attacks_that_cannot_be_run_are_named() -> None:
    found = certbench.certify(Still(), Classifier(Stepped().eval(), (4,), 2), points(), L2, attack=True)
    assert set(found.evidence[0]["failed"]) == {"battery", *(f"descent, {share:g}" for share in SHARES)}


def test_smoothed_classifiers_are_left_to_the_audit() -> None:
    with pytest.raises(ConfigError, match="which certbench audit attacks; leave attack out"):
        certbench.certify("smoothing", plane(), points(), L2, attack=True)
