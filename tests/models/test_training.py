import math

import pytest
import torch
from torch import nn

from certbench.errors import ConfigError
from certbench.models import data, training, zoo
from certbench.models.architectures import plain
from certbench.models.data.base import Dataset
from certbench.models.recipes.adversarial import Adversarial
from certbench.models.recipes.base import Objective
from certbench.models.recipes.gaussian import GaussianNoise
from certbench.models.recipes.interval_bounds import IntervalBounds
from certbench.models.recipes.lipschitz_margin import LipschitzMargin
from certbench.models.recipes.plain import CrossEntropy
from certbench.networks.normalise import Normalise
from tests.support.architectures import network

OBJECTIVES = [
    CrossEntropy(),
    GaussianNoise(0.25),
    Adversarial(2.0, 0.1, steps=3),
    Adversarial(math.inf, 0.02, steps=3),
    IntervalBounds(0.05),
    LipschitzMargin(0.1),
]


@pytest.mark.machine
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_every_objective_learns_by_its_seed_alone(objective: Objective) -> None:
    digits = data.load("digits", "train")
    recipe, random, threads = training.Recipe(objective, epochs=3), torch.get_rng_state(), torch.get_num_threads()

    def train(seed: int) -> nn.Sequential:
        def build() -> nn.Sequential:
            return plain.mlp((1, 8, 8), 10, Normalise([0.3], [0.4]))

        return training.train(build, recipe, digits, seed)

    first = train(0)
    torch.rand(3)
    torch.set_num_threads(2)
    again = train(0)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    torch.set_rng_state(random)
    assert not torch.equal(first[2].weight, train(1)[2].weight)
    assert torch.equal(torch.get_rng_state(), random)
    assert not first.training and not any(parameter.requires_grad for parameter in first.parameters())
    assert (first(digits.inputs).argmax(dim=1) == digits.labels).float().mean() > 0.8


def test_too_few_inputs_to_train_on_are_refused(digits: Dataset) -> None:
    few = Dataset("few", digits.inputs[:5], digits.labels[:5], 10)
    with pytest.raises(ConfigError, match="few has 5 inputs, less than a batch of 64"):
        training.train(lambda: network("linear"), zoo.TABLE["linear"].recipe, few, 0)
