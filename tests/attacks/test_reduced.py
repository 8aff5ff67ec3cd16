"""Attacks under scales: what they find lies in the domain, moves no fixed coordinate and is measured in the scale."""

import math

import pytest
import torch

import certbench
from certbench import L0, L1, L2, Linf, ThreatModel
from certbench.attacks.battery import attack, attack_with_all, refute
from certbench.attacks.certified import held
from certbench.attacks.clever import clever
from certbench.attacks.counterexamples import Counterexamples, replay
from certbench.attacks.walk import distance
from certbench.testing import inputs, nearest, network

MASK = torch.ones(16, dtype=torch.float64)
MASK[[3, 7]] = 0
SCALE = (torch.rand(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.2) * MASK
X = inputs(2)
LOW, HIGH = torch.zeros(16), torch.linspace(1, 3, 16)
THREATS = tuple(threat.scaled(SCALE).within(LOW, HIGH) for threat in (L1, L2, Linf))


def check(found: Counterexamples, threat: ThreatModel) -> None:
    flat, change = found.point.flatten(1), (found.point - X).flatten(1)
    assert not change[:, [3, 7]].any()
    assert (flat >= LOW).all()
    assert (flat <= HIGH).all()
    free = MASK > 0
    there = torch.linalg.vector_norm((change / SCALE)[:, free], ord=threat.p, dim=1)
    hit = found.distance.isfinite()
    assert (found.distance >= there)[hit].all()
    assert found.distance[hit].tolist() == pytest.approx(there[hit].tolist(), rel=1e-12)
    assert (found.distance >= nearest(network("linear"), X, threat) * (1 - 1e-9)).all()


@pytest.mark.machine
def test_every_counterexample_respects_the_threat() -> None:
    classifier = network("linear")
    box = THREATS[0].ends(X)
    found = attack(classifier, X, THREATS, box, steps=10)
    for threat in THREATS:
        check(found[threat], threat)
    more, failed = attack_with_all(classifier, X, THREATS, box, steps=5, known=found)
    assert not failed
    for threat in THREATS:
        check(more[threat], threat)
        assert (more[threat].distance <= found[threat].distance * (1 + 1e-9)).all()
        near = refute(classifier, X, threat, more[threat].distance * 1.5, box, steps=5, known=more)
        check(near, threat)


@pytest.mark.parametrize("p", [0.0, 1.0, 2.0, math.inf])
def test_distances_are_those_of_the_threat_and_a_forbidden_move_is_none(p: float) -> None:
    threat = ThreatModel(p, None, tuple(MASK.tolist()) if p == 0 else tuple((SCALE * 2).tolist()))
    step = torch.zeros(2, 16, dtype=torch.float64)
    step[0, :3], step[1, 3] = 0.5, 1e-12
    far = distance(threat, X, X + step.view(X.shape))
    wanted = 3.0 if p == 0 else torch.linalg.vector_norm(0.5 / (SCALE[:3] * 2), ord=p).item()
    assert far.tolist() == pytest.approx([wanted, math.inf], rel=1e-12)
    assert far[0] >= wanted


def test_a_stored_point_that_moves_a_fixed_coordinate_is_no_counterexample() -> None:
    classifier = network("linear")
    weight = classifier.double().module[1].weight
    first, second = classifier.double()(X).topk(2, dim=1).indices.T
    point = X + 50 * (weight[second] - weight[first]).view(X.shape)
    stored = Counterexamples(torch.zeros(2, dtype=torch.float64), point, ("old", "old"))
    assert replay(classifier, X, L2, stored)[L2].distance.isfinite().all()
    threat = L2.scaled(SCALE)
    assert replay(classifier, X, threat, stored)[threat].distance.isinf().all()


@pytest.mark.machine
@pytest.mark.parametrize("threat", [*THREATS, L0.scaled(MASK).within(LOW, HIGH)], ids=lambda threat: threat.name)
def test_right_radii_are_never_accused(threat: ThreatModel) -> None:
    classifier = network("linear")
    found = certbench.Certificate.of(classifier.double()(X).argmax(dim=1), torch.zeros(2, dtype=torch.float64))
    if threat.p != 0:
        found = certbench.certify("crown", classifier, X, threat)
    assert torch.equal(held(found, classifier, X, threat, steps=5).radius, found.radius)


def test_estimates_are_in_units_of_the_scale() -> None:
    classifier, threat = network("linear"), L2.scaled(SCALE)
    found = clever(classifier, X, threat, radius=10.0, batches=3, samples=3)
    assert found.tolist() == pytest.approx(nearest(classifier, X, threat).tolist(), rel=1e-6)
