"""A half-space, points at a distance from it, and a classifier that is broken on one side."""

import math

import torch
from torch import Tensor, nn

from certbench import Classifier


def halfspace(d: int = 4) -> Classifier:
    """Class 1 where the first coordinate is positive: g is the same, and its radius is that coordinate."""
    module = nn.Linear(d, 2)
    with torch.no_grad():
        module.weight.zero_()
        module.bias.zero_()
        module.weight[1, 0] = 1.0
    return Classifier(module.eval(), (d,), 2)


def points(n: int, first: float) -> Tensor:
    x = torch.rand(n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 0] = first
    return x


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0], -x[:, 0]], 1).masked_fill(x[:, :1] > 0, math.nan)
