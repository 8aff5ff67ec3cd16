"""Attacks on smoothed classifiers: none within the certified radius, and that the search is able to find some."""

import math

import pytest
import torch
from torch import nn

from benchmarks.smoothed_attack import attack
from certbench import L2, Classifier
from certbench.auditing import smoothed_classifiers
from certbench.auditing.smoothed_classifiers import perturb
from certbench.core.margins import clean_margin
from certbench.core.threat import ThreatModel
from certbench.models import data, zoo
from certbench.verifiers.smoothing.noise.families import Gaussian
from certbench.verifiers.smoothing.noise.integer import IntegerGaussian
from certbench.verifiers.smoothing.smoothing import Smoothing

pytestmark = pytest.mark.machine


@pytest.mark.parametrize("name", ["mlp-gaussian", "cnn-gaussian"])
def test_within_the_radius_no_attack_succeeds_more_often_than_alpha_explains(name: str) -> None:
    smoothing = Smoothing(Gaussian(0.25), n=1000, alpha=0.001)
    x = data.load("digits").inputs[:10]
    inside, beyond = attack(smoothing, zoo.load(name), x, (1.0, 3.0), judge=1000, draws=16)
    assert inside.attacked >= 8
    assert inside.changed <= inside.explained < inside.attacked / 2
    for result in (inside, beyond):  # that the search is able to find some is shown on half-spaces, where it must
        assert 0 <= result.changed + result.abstained <= result.attacked


def halfspace(slope: float, offset: float) -> Classifier:
    """Class 1 where slope times (x_0 + offset) is positive; smoothing leaves the boundary where it is."""
    module = nn.Linear(6, 2)
    with torch.no_grad():
        module.weight.zero_()
        module.bias.zero_()
        module.weight[1, 0] = slope
        module.bias[1] = slope * offset
    return Classifier(module.eval().requires_grad_(False), (6,), 2)


def test_the_attack_finds_the_worst_direction_and_keeps_to_its_length() -> None:
    classifier, x = halfspace(4.0, 0.0), torch.full((5, 6), 0.2, dtype=torch.float64)
    eps = torch.tensor([0.05, 0.1, 0.2, 0.4, 0.8], dtype=torch.float64)
    smoothed = Smoothing(Gaussian(0.25)).smoothed(classifier, L2)
    found = perturb(smoothed, x, torch.ones(5, dtype=torch.int64), eps, steps=10, draws=8)
    length = (found - x).norm(dim=1)
    assert (length <= eps).all()
    torch.testing.assert_close(length, eps)
    torch.testing.assert_close(x[:, 0] - found[:, 0], eps)
    assert torch.equal(found[:, 1:], x[:, 1:])


def test_beyond_the_distance_of_a_halfspace_the_answer_changes_and_within_it_does_not() -> None:
    smoothing = Smoothing(Gaussian(0.25), n=20_000)
    x = torch.full((1, 6), 0.2)
    inside, beyond = attack(smoothing, halfspace(4.0, 0.0), x, (1.0, 1.3), judge=20_000, steps=10, draws=8)
    assert (inside.attacked, inside.changed) == (1, 0)
    assert beyond.changed == 1


def test_where_there_is_no_gradient_the_attack_keeps_its_length_and_changes_nothing() -> None:
    flat, x = halfspace(0.0, 0.0), torch.zeros(2, 6, dtype=torch.float64)
    with torch.no_grad():
        flat.module.bias[1] = 1.0
    smoothed = Smoothing(Gaussian(0.25)).smoothed(flat, L2)
    found = perturb(smoothed, x, torch.ones(2, dtype=torch.int64), torch.full((2,), 0.5), steps=3, draws=4)
    assert found.isfinite().all()
    assert ((found - x).norm(dim=1) <= 0.5).all()
    (result,) = attack(Smoothing(Gaussian(0.25), n=200), flat, x, (50.0,), judge=200, steps=3, draws=4)
    assert (result.attacked, result.changed, result.abstained) == (2, 0, 0)


def test_an_answer_that_cannot_be_told_is_no_change() -> None:
    x = torch.full((3, 6), 0.2)
    (result,) = attack(Smoothing(Gaussian(0.25), n=200), halfspace(4.0, 0.0), x, (0.0,), judge=10, steps=3, draws=4)
    assert (result.attacked, result.changed, result.abstained) == (3, 0, 3)  # ten draws tell nothing


pytestmark = pytest.mark.machine


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize(
    "smoothing",
    [
        Smoothing(Gaussian(0.25)),
        Smoothing(Gaussian(0.25), layer="0"),
        Smoothing(Gaussian(0.25), share=3),
        Smoothing(IntegerGaussian(0.25, grid=16)),
    ],
    ids=["input", "layer", "shared", "integer"],
)
@pytest.mark.parametrize("plane", [False, True])
def test_points_that_attack_smoothing_lie_within_the_radius_and_are_worse(
    smoothing: Smoothing, p: float, plane: bool
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    if plane:  # one coordinate decides, so that every attack must go the same way
        module = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)).eval()
        with torch.no_grad():
            for layer in module:
                layer.weight.zero_()  # type: ignore[operator, union-attr]
                layer.bias.zero_()  # type: ignore[operator, union-attr]
            module[0].weight[0, 0] = module[1].weight[1, 0] = 1.0  # type: ignore[index, operator]
            module[1].bias.copy_(torch.tensor([0.5, 0.0, -9.0]))  # type: ignore[operator, union-attr]
    classifier, threat = Classifier(module, (6,), 3), ThreatModel(p, (0.0, 1.0))
    x = (16 * torch.rand(5, 6, generator=torch.Generator().manual_seed(1))).round().double() / 16
    label = classifier(x).argmax(dim=1)
    eps = torch.tensor([0.13, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)
    smoothed = smoothing.smoothed(classifier, threat)
    points = smoothed_classifiers.perturb(smoothed, x, label, eps, threat, steps=10, draws=32)
    assert (torch.linalg.vector_norm(points - x, ord=p, dim=1) <= eps).all()
    assert points.min() >= 0 and points.max() <= 1
    margin = clean_margin(classifier(points), label) - clean_margin(classifier(x), label)
    assert (margin < 0).all() or not plane
    answer = smoothed.predict(points, level=0.001, draws=500, seed=3)
    assert answer.shape == (5,)
