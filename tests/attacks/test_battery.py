import math
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from certbench import L1, L2, Classifier, Linf, ThreatModel
from certbench.attacks import battery, walk
from certbench.attacks.battery import attack, attack_with_all, refute
from certbench.attacks.counterexamples import Counterexamples, Hunt, replay
from certbench.attacks.walk import differs, walk_back
from certbench.core.threat import L0
from certbench.testing import closed_form, inputs, network
from tests.support.holes import Hole

pytestmark = pytest.mark.machine


@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_distances_are_those_of_points_that_are_classified_differently(threat: ThreatModel) -> None:
    classifier, x = network("mlp"), inputs(10)
    found = attack(classifier, x, (threat,), (0.0, 1.0), steps=30)[threat]
    hit = found.distance.isfinite()
    assert hit.all()  # whatever the attacks find, the nearest input of another class is there
    assert (found.point >= 0).all() and (found.point <= 1).all()
    exact = classifier.double()
    assert (exact(found.point).argmax(1) != exact(x).argmax(1))[hit].all()
    length = torch.linalg.vector_norm((found.point - x).flatten(1), ord=threat.p, dim=1)
    assert (found.distance >= length)[hit].all()
    torch.testing.assert_close(found.distance[hit], length[hit])


@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
@pytest.mark.parametrize("steps", [1, 100])
def test_distances_are_never_below_the_closed_form_nor_beyond_the_nearest_input(
    threat: ThreatModel, steps: int
) -> None:
    """Whatever the attacks find: the segment to the nearest input of another class crosses the border by itself."""
    classifier, x = network("linear"), inputs(10)
    exact = classifier.double()
    label = exact(x).argmax(dim=1)
    apart = torch.cdist(x.flatten(1), x.flatten(1)).masked_fill(label[:, None] == label, math.inf)
    border = walk_back(lambda points: differs(exact, points, label), x, x[apart.argmin(dim=1)])
    distance = attack(classifier, x, (threat,), (-5.0, 6.0), steps=steps)[threat].distance
    assert (distance >= closed_form(classifier, x, threat) * (1 - 1e-9)).all()
    assert (distance <= walk.distance(threat, x, border) * (1 + 1e-5)).all()  # attacks read float32


def test_the_global_generator_is_left_as_it_was_and_the_seed_decides() -> None:
    classifier, x = network("mlp"), inputs(6)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one = attack(classifier, x, (L2,), (0.0, 1.0), steps=10)[L2].distance
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(8)
    assert torch.equal(attack(classifier, x, (L2,), (0.0, 1.0), steps=10)[L2].distance, one)


def test_one_class_only_and_no_input_give_no_counterexample() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    with torch.no_grad():
        module[1].weight.zero_()
        module[1].bias.copy_(torch.tensor([1.0, 0, 0, 0]))
    classifier = Classifier(module.eval(), (1, 4, 4), 4)
    for n in (0, 3):
        assert attack(classifier, inputs(n), (L2,), (0.0, 1.0), steps=3)[L2].distance.tolist() == [math.inf] * n


def test_nan_logits_are_no_counterexample() -> None:
    torch.manual_seed(0)
    classifier, x = Classifier(Hole().eval(), (1, 4, 4), 4), inputs(8)
    found = attack(classifier, x, (L2,), (0.0, 1.0), steps=10)[L2]
    hit = found.distance.isfinite()
    assert classifier.double()(found.point)[hit].isfinite().all()
    assert classifier.double()(x)[hit].isfinite().all()
    inside = x.clone()
    inside[:, 0, 0, 0] = 0.75
    claimed = Counterexamples(torch.zeros(8, dtype=torch.float64), inside, ("by hand",) * 8)
    assert replay(classifier, x, L2, claimed)[L2].distance.isinf().all()


# what the audit adds

BOX = (-5.0, 6.0)

NEAR = {
    "L1 FMN": (L1, 1.02),
    "EAD": (L1, 1.5),
    "L2 FMN": (L2, 1.02),
    "DDN": (L2, 1.3),
    "C&W": (L2, 1.4),
    "L2 PGD": (L2, 1.4),
    "L2 fast gradient": (L2, 1.4),
    "L2 DeepFool": (L2, 1.02),
    "L-BFGS": (L2, 1.3),
    "boundary attack": (L2, 1.02),
    "Linf FMN": (Linf, 1.02),
    "Linf PGD": (Linf, 1.3),
    "FGSM": (Linf, 1.4),
    "Linf DeepFool": (Linf, 1.02),
}
"""Attacks, their norm, and how near their median comes to the exact distance of a linear classifier.

There gradients are the same everywhere, so that rounding leads no attack astray: under all settings of `make
check-machines` the medians were the same to four digits, and at most 1.23. A single input may still have bad luck.
"""


@pytest.fixture(scope="module")
def offered() -> dict[str, list[Tensor]]:
    """What each attack of the battery offers for a linear classifier, all of it counterexamples."""
    classifier, x = network("linear"), inputs(8)
    hunt = Hunt.of(classifier, x, (L0, L1, L2, Linf), BOX)
    points: dict[str, list[Tensor]] = {}

    def offer(name: str, found: Tensor) -> None:
        found = walk_back(lambda moved: differs(hunt.exact, moved, hunt.label), hunt.x, found.double().clamp(*BOX))
        points.setdefault(name, []).append(found)
        hunt.offer(name, found)

    torch.manual_seed(0)
    for name, found in battery._battery(classifier, hunt.x, hunt.label, (L0, L1, L2, Linf), BOX, 60):
        offer(name, found)
    for name, method in battery._more(classifier, hunt, 60):
        offer(name, method())
    return points


@pytest.mark.parametrize("name", NEAR)
def test_each_attack_comes_near_the_closed_form(offered: dict[str, list[Tensor]], name: str) -> None:
    classifier, x = network("linear"), inputs(8)
    exact, (threat, limit) = classifier.double(), NEAR[name]
    label = exact(x).argmax(dim=1)
    closest = torch.full((8,), math.inf, dtype=torch.float64)
    for points in offered[name]:
        length = walk.distance(threat, x, points)
        closest = torch.where(differs(exact, points, label), closest.minimum(length), closest)
    ratio = closest / closed_form(classifier, x, threat)
    assert (ratio >= 1 - 1e-9).all()
    assert ratio.median() <= limit


@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_the_whole_battery_is_nearly_exact_on_a_linear_classifier(threat: ThreatModel) -> None:
    """In L2 and Linf by theorem: there a step of DeepFool is the shortest. In L1 a point that is known is not lost."""
    classifier, x = network("linear"), inputs(6)
    exact = closed_form(classifier, x, threat)
    known = {L1: nearest(classifier, x)} if threat == L1 else None
    found, failed = attack_with_all(classifier, x, (threat,), BOX, steps=40, seed=3, known=known)
    assert failed == {}
    assert (found[threat].distance >= exact * (1 - 1e-9)).all()
    assert (found[threat].distance <= 1.02 * exact).all()


def nearest(classifier: Classifier, x: Tensor) -> Counterexamples:
    """The closest counterexamples of a linear classifier in L1, by hand: one coordinate crosses one border."""
    linear: Any = classifier.double().module[1]  # type: ignore[index]
    points = x.flatten(1).clone()
    for point in points:
        logits = linear(point)
        slopes = linear.weight - linear.weight[logits.argmax()]
        gaps = (logits.max() - logits) / slopes.abs().amax(dim=1)
        rival = int(gaps.nan_to_num(math.inf).argmin())  # the class itself is 0 / 0
        at = int(slopes[rival].abs().argmax())
        point[at] += 1.001 * gaps[rival] * slopes[rival, at].sign()
    return Counterexamples(torch.zeros(len(x), dtype=torch.float64), points.view(x.shape), ("by hand",) * len(x))


def test_l0_is_the_fewest_coordinates() -> None:
    classifier, x = network("linear"), inputs(6)
    found, _ = attack_with_all(classifier, x, (L0,), (0.0, 1.0), steps=20)
    linear: Any = classifier.double().module[1]  # type: ignore[index]
    logits = linear(x.flatten(1))
    for i, point in enumerate(x.flatten(1)):
        top = int(logits[i].argmax())
        fewest = 17
        for rival in set(range(4)) - {top}:
            slope = linear.weight[rival] - linear.weight[top]
            gain = torch.maximum(slope * (1 - point), -slope * point).sort(descending=True).values.cumsum(dim=0)
            enough = (gain > logits[i, top] - logits[i, rival]).nonzero()
            fewest = min(fewest, int(enough[0]) + 1) if len(enough) else fewest
        assert found[L0].distance[i] == (fewest if fewest < 17 else math.inf)


@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_inside_a_ball_is_found_what_is_there_and_nothing_else(threat: ThreatModel) -> None:
    classifier, x = network("linear"), inputs(6)
    exact = closed_form(classifier, x, threat)
    assert refute(classifier, x, threat, 0.999 * exact, BOX, steps=30).distance.isinf().all()
    found = refute(classifier, x, threat, 1.01 * exact, BOX, steps=30)
    assert (found.distance <= 1.01 * exact * (1 + 1e-9)).all()
    assert (found.distance >= exact * (1 - 1e-9)).all()


def test_an_attack_that_fails_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> Tensor:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(battery, "lbfgs", broken)
    found, failed = attack_with_all(network("linear"), inputs(4), (L2,), BOX, steps=10)
    assert failed == {"L-BFGS": "RuntimeError: no such thing"}
    assert found[L2].distance.isfinite().all()


def test_no_attack_begins_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    offered: list[Any] = []
    monkeypatch.setattr(Hunt, "offer", lambda hunt, name, points, walk=True: offered.append(name))
    attack_with_all(network("linear"), inputs(4), (L2,), BOX, steps=2, deadline=time.monotonic())
    assert offered == ["nearest input"]
    offered.clear()
    eps = torch.full((4,), 0.1, dtype=torch.float64)
    refute(network("linear"), inputs(4), L2, eps, BOX, steps=2, deadline=time.monotonic() - 1)
    assert offered == []


def test_global_generators_are_left_as_they_were_by_the_whole_battery() -> None:
    np.random.seed(3)
    torch.manual_seed(3)
    numbers, state = np.random.get_state()[1].copy(), torch.random.get_rng_state()  # type: ignore[union-attr,index]
    found, _ = attack_with_all(network("mlp"), inputs(3), (L2,), (0.0, 1.0), steps=5)
    assert np.array_equal(np.random.get_state()[1], numbers)  # type: ignore[arg-type,index]
    assert torch.equal(torch.random.get_rng_state(), state)
    again, _ = attack_with_all(network("mlp"), inputs(3), (L2,), (0.0, 1.0), steps=5)
    assert torch.equal(found[L2].distance, again[L2].distance)
