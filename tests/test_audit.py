import math

import pytest
import torch
from torch import Tensor, nn

from certbench import L1, L2, Classifier, Linf, ThreatModel
from certbench.audit import attack

from .test_contract import closed_form, inputs, network


@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_distances_are_those_of_points_that_are_classified_differently(threat: ThreatModel) -> None:
    classifier, x = network("mlp"), inputs(10)
    found = attack(classifier, x, (threat,), (0.0, 1.0), steps=30)[threat]
    hit = found.distance.isfinite()
    assert hit.any()
    assert (found.point >= 0).all() and (found.point <= 1).all()
    exact = classifier.double()
    assert (exact(found.point).argmax(1) != exact(x).argmax(1))[hit].all()
    length = torch.linalg.vector_norm((found.point - x).flatten(1), ord=threat.p, dim=1)
    assert (found.distance >= length)[hit].all()
    torch.testing.assert_close(found.distance[hit], length[hit])


@pytest.mark.parametrize("threat", [L2, Linf], ids=str)
def test_attacks_come_near_the_closed_form_and_never_below_it(threat: ThreatModel) -> None:
    classifier, x = network("linear"), inputs(10)
    exact = closed_form(classifier, x, threat)
    distance = attack(classifier, x, (threat,), (-5.0, 6.0), steps=100)[threat].distance
    assert (distance >= exact * (1 - 1e-9)).all()
    assert (distance <= 1.15 * exact).all()


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


class Hole(nn.Module):
    """NaN wherever the first pixel is above a half: no class wins there."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.layer(x).masked_fill(x[:, :1] > 0.5, math.nan)


def test_nan_logits_are_no_counterexample() -> None:
    torch.manual_seed(0)
    classifier, x = Classifier(Hole().eval(), (1, 4, 4), 4), inputs(8)
    found = attack(classifier, x, (L2,), (0.0, 1.0), steps=10)[L2]
    hit = found.distance.isfinite()
    assert classifier.double()(found.point)[hit].isfinite().all()
    assert classifier.double()(x)[hit].isfinite().all()
