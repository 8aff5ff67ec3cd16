import math

import pytest
import torch
from torch import nn

from certbench.errors import ConfigError
from certbench.models import zoo
from certbench.models.data.base import Dataset
from certbench.models.recipes.adversarial import Adversarial
from certbench.models.recipes.base import Step
from tests.support.architectures import draw, network


@pytest.mark.machine
@pytest.mark.parametrize("p", [2.0, math.inf])
def test_adversarial_points_lie_in_the_ball_and_cost_more_than_random_ones(p: float) -> None:
    module, x, y, eps = network("mlp"), draw(10, 1, 8, 8), torch.arange(10), 0.3
    step = Step(x, y, 0.0, torch.Generator().manual_seed(0))
    start, end = (Adversarial(p, eps, steps).ascend(module, step) for steps in (0, 10))
    for points in (start, end):
        assert (points >= 0).all() and (points <= 1).all()
        assert torch.linalg.vector_norm((points - x).flatten(1), ord=p, dim=1).amax() <= eps * (1 + 1e-9)
    loss = nn.CrossEntropyLoss(reduction="none")
    assert (loss(module(end), y) > loss(module(start), y)).all() and (loss(module(end), y) > loss(module(x), y)).all()
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.machine
def test_adversarial_training_moves_the_classes_apart(digits: Dataset) -> None:
    x, y = digits.inputs.double(), digits.labels
    step, attack = Step(x, y, 0.0, torch.Generator().manual_seed(0)), Adversarial(2.0, 0.6, 20)
    accuracy = []
    for name in ("mlp-plain", "mlp-pgd"):
        module = zoo.load(name).double().module
        assert isinstance(module, nn.Sequential)
        accuracy.append(float((module(attack.ascend(module, step)).argmax(dim=1) == y).double().mean()))
    assert accuracy[1] > accuracy[0] + 0.1


def test_adversarial_training_in_another_norm_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"norm 1\.0; write 2 or inf"):
        Adversarial(1.0, 0.1)
