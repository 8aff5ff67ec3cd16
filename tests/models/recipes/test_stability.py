import torch
from torch import nn

from certbench.models import zoo
from certbench.models.architectures.denoisers import (
    Residual,
)
from certbench.models.data.base import Dataset
from certbench.models.recipes.base import Step
from certbench.models.recipes.stability import Stability


def test_stability_asks_for_the_classifiers_own_label(digits: Dataset) -> None:
    module = zoo.load("cnn-plain").double().module
    assert isinstance(module, nn.Sequential)
    identity = nn.Sequential(Residual((1, 8, 8), 3).double(), *module)
    for parameter in identity[0].parameters():
        nn.init.zeros_(parameter)
    step = Step(digits.inputs.double(), 9 - digits.labels, 0.0, torch.Generator())  # wrong labels, not read
    logits = module(step.x)
    expected = nn.functional.cross_entropy(logits, logits.argmax(dim=1))
    assert torch.isclose(Stability(0.0).loss(identity, step), expected)
