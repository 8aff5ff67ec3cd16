"""Classifiers of small grids, whose smoothed classifiers can be enumerated."""

import itertools

import numpy as np
import torch
from torch import Tensor, nn

from certbench import Classifier
from certbench.verifiers.smoothing.ablation import (
    TwoChannel,
)


class Table(nn.Module):
    """A random function of the input's exact values: the worst kind of base classifier, the same at every call."""

    def __init__(self, classes: int, seed: int, favour: float = 0.0) -> None:
        super().__init__()
        self.classes, self.seed, self.favour = classes, seed, favour

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.arange(1.0, x[0].numel() + 1, dtype=torch.float64) * (7.3 + self.seed)
        mixed = torch.sin((x.nan_to_num(nan=-1).double().flatten(1) * weights).sum(dim=1) + self.seed) * 1e4
        mixed = mixed[:, None] * torch.arange(1, self.classes + 1)
        logits = mixed - mixed.floor()
        logits[:, 0] += self.favour
        return logits


class Half(nn.Module):
    """Class 1 where the mean of the input is above one half: under cuts at lam = 1/2 its probability is x itself."""

    def forward(self, x: Tensor) -> Tensor:
        middle = x.double().flatten(1).mean(dim=1)
        return torch.stack([torch.full_like(middle, 0.5), middle], dim=1)


def table(d: int, classes: int, seed: int, favour: float = 0.0) -> Classifier:
    return Classifier(Table(classes, seed, favour).eval(), (d,), classes)


def half(d: int = 1) -> Classifier:
    return Classifier(Half().eval(), (d,), 2)


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(seed))


def grid(d: int, steps: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(steps + 1), repeat=d)), dtype=torch.float64) / steps


class Shown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.full_like(x[:, 0], 0.5), x.flatten(1).sum(dim=1)], dim=1)


def scored(channels: int, height: int, width: int, seed: int, favour: float) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        linear = nn.Linear(2 * channels * height * width, 3)
    with torch.no_grad():
        linear.weight.mul_(3)
        linear.bias[0] += favour
    return Classifier(nn.Sequential(TwoChannel(), nn.Flatten(), linear).eval(), (channels, height, width), 3)
