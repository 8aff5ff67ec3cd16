"""The checker of semidefinite relaxations against the certifier, against samples and against tampered files."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from certbench.checker import semidefinite
from certbench.checker.network import Network
from certbench.checker.reading import Claim, array, written
from certbench.checker.relaxation import CutBall
from certbench.core.search import Secant
from certbench.core.threat import ThreatModel
from certbench.verifiers.linear.sdp import SDP
from tests.support import checking

pytestmark = pytest.mark.usefixtures("solvers")
BOX = (-5.0, 1.0)
THREATS = [ThreatModel(2.0), ThreatModel(2.0, BOX), ThreatModel(math.inf), ThreatModel(math.inf, BOX)]
SEARCH = Secant(relative=0.1)
PARTS = ("input", "unit", "gap", "cut", "complement")


@pytest.fixture(params=THREATS, ids=str, scope="module")
def sample(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Claim, dict[str, Any], Network]:
    """One certificate, which CROWN alone would not give."""
    classifier = checking.perceptron(4, 6, 5, 3)
    found = checking.made(SDP(search=SEARCH), classifier, request.param, checking.inputs(classifier, 5))
    claim, evidence = next(pair for pair in found if any(pair[1]["multipliers"]))
    read = checking.read(classifier, tmp_path_factory.mktemp("network"))
    assert checking.refused(semidefinite, claim, evidence, read) == ""
    return claim, evidence, read


@pytest.mark.parametrize("cuts", [True, False])
def test_agrees_with_the_certifier(cuts: bool, tmp_path: Path) -> None:
    for classifier in (checking.perceptron(4, 3), checking.perceptron(4, 5, 3)):
        read = checking.read(classifier, tmp_path)
        for threat in THREATS[1:3]:
            certifier, count = SDP(search=SEARCH, cuts=cuts), 0
            for claim, evidence in checking.made(certifier, classifier, threat, checking.inputs(classifier, 2)):
                assert checking.refused(semidefinite, claim, evidence, read) == ""
                count += 1
            assert count == 2


@pytest.mark.slow
def test_agrees_on_a_thousand(tmp_path: Path) -> None:
    """But for a few, where the solver, asked again at the radius, ends elsewhere; the exporter then claims less."""
    classifier, count, lost = checking.perceptron(4, 5, 3), 0, 0
    read = checking.read(classifier, tmp_path)
    for threat in THREATS:
        for claim, evidence in checking.made(SDP(search=SEARCH), classifier, threat, checking.inputs(classifier, 255)):
            lost += checking.refused(semidefinite, claim, evidence, read) != ""
            count += 1
    assert count >= 1000
    assert lost <= 10


def test_multipliers_are_needed_and_their_signs_count(sample: tuple[Claim, dict[str, Any], Network]) -> None:
    claim, evidence, read = sample
    without = {**evidence, "multipliers": [None] * len(evidence["multipliers"])}
    assert "not proved to be positive" in checking.refused(semidefinite, claim, without, read)
    for k, given in enumerate(evidence["multipliers"]):
        if given is None:
            continue
        halves = {name: written(array(given[name], name) / 2) for name in PARTS}
        weaker = checking.changed(evidence, ("multipliers", k), {**given, **halves, "ball": given["ball"] / 2})
        alone = checking.changed(without, ("multipliers", k), given)
        assert (checking.refused(semidefinite, claim, alone, read) == "") == (
            sum(map(bool, evidence["multipliers"])) == 1
        )
        assert checking.refused(semidefinite, claim, weaker, read)
        for name in PARTS:
            found = array(given[name], name)
            for new in (found[:-1], np.append(found, 0.0), -np.abs(found) - 1e-3, found * 1e200, found + 1e6):
                changed = checking.changed(evidence, ("multipliers", k, name), written(new))
                if new.tolist() == found.tolist() or (name == "complement" and (new < 0).any()):
                    continue  # all are 0, or any sign is right
                assert checking.refused(semidefinite, claim, changed, read)
        for ball in (-1.0, "1", None, True):
            changed = checking.changed(evidence, ("multipliers", k, "ball"), ball)
            assert checking.refused(semidefinite, claim, changed, read)


def test_layer_bounds_and_slopes_are_not_believed(sample: tuple[Claim, dict[str, Any], Network]) -> None:
    claim, evidence, read = sample
    for i, layer in enumerate(evidence["layers"]):
        middle = (array(layer["lower"], "lower") + array(layer["upper"], "upper")) / 2
        for name in ("lower", "upper"):
            for neuron in range(len(middle)):
                new = array(layer[name], name)
                new[neuron] = middle[neuron]
                changed = checking.changed(evidence, ("layers", i, name), written(new))
                assert "not proved" in checking.refused(semidefinite, claim, changed, read)
    slopes = array(evidence["slopes"][0], "slopes") * 0
    for new in (slopes - 0.1, slopes + 1.1):
        assert checking.refused(semidefinite, claim, checking.changed(evidence, ("slopes", 0), written(new)), read)
    assert checking.refused(semidefinite, replace(claim, radius=claim.radius * 1.01), evidence, read)
    assert checking.refused(semidefinite, replace(claim, prediction=(claim.prediction + 1) % 3), evidence, read)
    assert checking.refused(semidefinite, replace(claim, domain=None, norm=math.inf, radius=10.0), evidence, read)


def test_nothing_that_is_written_raises_or_is_believed(sample: tuple[Claim, dict[str, Any], Network]) -> None:
    claim, evidence, read = sample
    larger, rng = replace(claim, radius=claim.radius * 10), np.random.default_rng(0)
    for where in list(checking.leaves(evidence))[1:]:
        for odd in (checking.ODD[i] for i in rng.permutation(len(checking.ODD))[:2]):
            changed = checking.changed(evidence, where, odd)
            checking.refused(semidefinite, claim, changed, read)
            assert checking.refused(semidefinite, larger, changed, read)
    assert checking.refused(semidefinite, claim, {**evidence, "more": 1}, read)
    assert checking.refused(semidefinite, claim, evidence, None)


def test_bounds_by_any_multipliers_lie_below_samples(sample: tuple[Claim, dict[str, Any], Network]) -> None:
    """Weak duality: whatever the multipliers, if their signs are right."""
    claim, evidence, read = sample
    rng, region = np.random.default_rng(0), CutBall.of(claim, claim.radius)
    ends = [tuple(array(layer[name], name) for name in ("lower", "upper")) for layer in evidence["layers"]]
    relaxation = semidefinite.QuadraticForms(region, read.layers(), ends)  # type: ignore[arg-type]
    moved = rng.normal(size=(3000, 4))
    if claim.norm == 2:
        moved /= np.linalg.norm(moved, axis=1, keepdims=True) * rng.random((3000, 1)) ** -0.1
    else:
        moved = np.where(rng.random((3000, 4)) < 0.5, np.sign(moved), rng.uniform(-1, 1, (3000, 4)))
    points = claim.input + claim.radius * moved
    if claim.domain is not None:
        points = points.clip(*claim.domain)
    outputs = np.array([read.evaluate(point) for point in points])
    finite = 0
    for k, given in enumerate(evidence["multipliers"]):
        other = [j for j in range(3) if j != claim.prediction][k]
        row = np.eye(3)[claim.prediction] - np.eye(3)[other]
        for change in (0.0, 1e-3, 0.1, 1.0, 10.0) if given else ():
            values = {name: array(given[name], name) for name in PARTS}
            noisy = {name: part * np.exp(change * rng.normal(size=part.shape)) for name, part in values.items()}
            noisy["complement"] += change * rng.normal(size=noisy["complement"].shape)
            noisy["unit"] += change
            noisy["input"] += change
            spread = {name: written(part) for name, part in noisy.items()}
            found = relaxation.bound(row, {**spread, "ball": (given["ball"] + change) if claim.norm == 2 else 0.0})
            assert found <= (outputs @ row).min()
            finite += found > -math.inf
    assert finite >= 4
