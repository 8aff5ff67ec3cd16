"""Searches of complete certifiers on linear classifiers, whose nearest counterexamples are known."""

import math

import pytest
import torch
from torch import Tensor, nn

from certbench import L1, L2, Classifier, Linf, ThreatModel
from certbench.attacks.frank_wolfe import (
    Closest,
    Shares,
    falling,
    frank_wolfe,
    harmonic,
    negative_points,
    slopes,
    steepest_step,
)
from certbench.attacks.walk import walk_back

NORMS = [L1, L2, Linf, L1.within(0, 1), L2.within(0, 1), Linf.within(0, 1)]


def linear(seed: int = 0, scale: float = 1.0) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = nn.Linear(5, 3)
    with torch.no_grad():
        layer.weight.mul_(scale)
    return Classifier(nn.Sequential(layer).eval(), (5,), 3, "linear").double()


def centre(classifier: Classifier) -> tuple[Tensor, int]:
    x = torch.rand(1, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 2 + 0.25
    return x, int(classifier(x).argmax())


def gaps(classifier: Classifier, x: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """The margins at x, and their gradients."""
    weight = classifier.module[0].weight.detach()  # type: ignore[index]
    others = [j for j in range(3) if j != label]
    return (classifier(x)[0, label] - classifier(x)[0])[others].detach(), (weight[label] - weight)[others]


@pytest.mark.parametrize("threat", NORMS, ids=str)
@pytest.mark.parametrize("shares", [harmonic(12), falling(12)], ids=["harmonic", "falling"])
def test_steps_stay_inside_the_ball_and_the_domain_and_find_a_linear_minimum(
    threat: ThreatModel, shares: Shares
) -> None:
    x, a = torch.full((2, 5), 0.3, dtype=torch.float64), torch.tensor([[1.0, -2, 0.5, 3, -1]] * 2).double()
    radius = torch.tensor([0.2, 0.9], dtype=torch.float64)
    least = x + steepest_step(a, radius, threat, x)
    seen = list(
        frank_wolfe(
            lambda points: (points * a).sum(dim=1), lambda slope: x + steepest_step(slope, radius, threat, x), x, shares
        )
    )
    assert len(seen) == len(shares) + 1 and torch.equal(seen[0][0], x)
    for points, values in seen:
        assert (torch.linalg.vector_norm(points - x, ord=threat.p, dim=1) <= radius * (1 + 1e-12)).all()
        assert threat.domain is None or bool(((points >= -1e-12) & (points <= 1 + 1e-12)).all())
        torch.testing.assert_close(values, (points * a).sum(dim=1))
    torch.testing.assert_close(seen[1][0], least)  # the first share is the whole way


def test_a_share_that_falls_reaches_the_minimum_of_a_convex_function() -> None:
    target = torch.tensor([[0.1, -0.2, 0.05]], dtype=torch.float64)
    *_, (_, value) = frank_wolfe(
        lambda points: (points - target).square().sum(dim=1),
        lambda slope: steepest_step(slope, torch.ones(1).double(), L2, torch.zeros(1, 3).double()),
        torch.zeros(1, 3).double(),
        harmonic(300),
    )
    assert float(value) < 8 * 4 / 302  # Jaggi (2013): 2 C / (k + 2), and C is at most twice the diameter's square


def test_slopes_of_a_constant_are_zero() -> None:
    values, slope = slopes(lambda points: torch.ones(len(points)).double(), torch.ones(2, 3).double())
    assert values.tolist() == [1, 1] and not bool(slope.any())


@pytest.mark.parametrize("threat", NORMS, ids=str)
def test_negative_points_of_linear_functions_lie_just_beyond_their_zeros(threat: ThreatModel) -> None:
    classifier = linear(scale=3.0)
    x, label = centre(classifier)
    margin, slope = gaps(classifier, x, label)
    found = negative_points(lambda points: (points - x).mul(slope).sum(dim=1) + margin, x, 2, threat)
    length = torch.linalg.vector_norm(found - x, ord=threat.p, dim=1)
    exact = margin / torch.linalg.vector_norm(slope, ord=threat.q, dim=1)
    moved = (found - x).mul(slope).sum(dim=1) + margin
    assert bool((moved < 0).any()) and torch.equal(moved < 0, length > 0)
    assert bool((length[moved < 0] >= exact[moved < 0] * (1 - 1e-12)).all())
    if threat.domain is None:
        assert bool((moved < 0).all()) and bool((length <= 1.2 * exact * (1 + 1e-9)).all())


def closest(threat: ThreatModel, classifier: Classifier) -> Closest:
    x, label = centre(classifier)
    return Closest(classifier, threat, x, label)


@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_the_closest_counterexample_of_a_linear_classifier_is_its_closed_form(threat: ThreatModel) -> None:
    classifier = linear()
    found = closest(threat, classifier)
    margin, slope = gaps(classifier, found.x, found.label)
    exact = float((margin / torch.linalg.vector_norm(slope, ord=threat.q, dim=1)).min())
    assert not closest(threat, classifier).refute(3, exact * 0.999, seed=0)
    assert closest(threat, classifier).refute(3, exact * 1.001, seed=0)
    found.approach(3, guess=exact / 3, limit=100.0, seed=0)
    assert exact * (1 - 1e-12) <= found.distance <= exact * (1 + 1e-6)
    assert found.point is not None and bool(found.wrong(found.point[None]))


@pytest.mark.parametrize("threat", NORMS, ids=str)
def test_only_counterexamples_inside_the_domain_are_kept_and_each_walks_back(threat: ThreatModel) -> None:
    classifier = linear()
    found = closest(threat, classifier)
    assert not found.offer(torch.cat([found.x, torch.full_like(found.x, math.nan)]))
    assert found.distance == math.inf and found.point is None
    margin, slope = gaps(classifier, found.x, found.label)
    which = int((margin / slope.square().sum(dim=1)).argmin())
    way = -slope[which : which + 1] * margin[which] / slope[which].square().sum()
    far = found.x + 1.7 * way
    offered = found.offer(far)
    assert offered or threat.domain is not None  # the domain may cut it off
    if offered:
        assert found.point is not None and bool(found.wrong(found.point[None]))
        assert threat.domain is None or bool(((found.point >= 0) & (found.point <= 1)).all())
        length = float(torch.linalg.vector_norm(found.point - found.x, ord=threat.p))
        assert length <= found.distance <= length * (1 + 1e-12)
        if threat.domain is None:
            assert length == pytest.approx(float(torch.linalg.vector_norm(way, ord=threat.p)), rel=1e-7)
        before = found.distance
        assert not found.offer(far) and found.distance == before  # no closer one


def test_a_walk_ends_within_one_half_to_the_rounds_of_the_border_and_never_before_it() -> None:
    x, points = torch.zeros(1, 2).double(), torch.tensor([[1.0, 0], [0, 4], [0.1, 0.1]], dtype=torch.float64)
    walked = walk_back(lambda moved: moved.sum(dim=1) > 0.3, x, points, rounds=20)
    assert torch.equal(walked[2], points[2])  # it is no counterexample
    assert bool((walked[:2].sum(dim=1) > 0.3).all())
    assert bool((walked[:2].sum(dim=1) <= 0.3 + 4 * 2.0**-20).all())
    inside = walk_back(lambda moved: moved.sum(dim=1) > 0.3, x, points[:2], rounds=20, domain=(0.0, 0.5))
    assert float(inside.max()) <= 0.5
