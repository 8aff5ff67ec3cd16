"""Attacks on smoothed classifiers: none within the certified radius, and that the search is able to find some."""

import pytest
import torch
from torch import nn

from benchmarks.smoothed_attack import attack
from certbench import L2, Classifier
from certbench.auditing.smoothed_classifiers import perturb
from certbench.models import data, zoo
from certbench.verifiers.smoothing.noise.families import Gaussian
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
