"""Interval bounds of perceptrons, by what certbench exports and nothing else."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from certbench import (
    Bounds,
    Classifier,
    Guarantee,
    MarginCertifier,
    MarginState,
    RadiusSearch,
    Secant,
    ThreatModel,
    UnsupportedError,
)


@dataclass(frozen=True, eq=False)
class Perceptron(MarginState):
    """What is prepared: the affine layers, with a ReLU between each two."""

    layers: tuple[nn.Linear, ...]


@dataclass(frozen=True)
class Intervals(MarginCertifier[Perceptron]):
    """Interval bounds (Gowal et al., 2018), whose first layer is exact in every norm, and whose last joins the margins.

    A domain is ignored, which is sound: the bounds hold in all of R^d.
    """

    search: RadiusSearch = field(default_factory=Secant)

    guarantee: ClassVar[Guarantee] = Guarantee.SOUND
    norms: ClassVar[frozenset[float]] = frozenset({1.0, 2.0, math.inf})

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> Perceptron:
        exact = classifier.double()
        return Perceptron(exact, threat, tuple(self.read(exact.module)))

    def read(self, module: nn.Module) -> list[nn.Linear]:
        """The affine layers of a perceptron; anything else is refused."""
        if not isinstance(module, nn.Sequential):
            raise UnsupportedError(f"only sequences are read, not {type(module).__name__}")
        parts = [part for part in module if not isinstance(part, nn.Flatten)]
        for i, part in enumerate(parts):
            if not isinstance(part, (nn.Linear, nn.ReLU)[i % 2]):
                raise UnsupportedError(f"a perceptron has no {type(part).__name__} in place {i}")
        return parts[::2]

    def lower(self, state: Perceptron, x: Tensor, rows: Tensor, eps: Tensor) -> Bounds:
        *hidden, last = state.layers
        weights, value = rows @ last.weight, rows @ last.bias
        if not hidden:
            return Bounds((weights @ x.flatten(1)[..., None]).squeeze(-1) + value - self.fall(state, weights, x, eps))
        first = hidden[0]
        spread = self.fall(state, first.weight.expand(len(x), -1, -1), x, eps)
        centre = first(x.flatten(1))
        low, high = (centre - spread).relu(), (centre + spread).relu()
        for layer in hidden[1:]:
            centre, spread = layer((low + high) / 2), (high - low) / 2 @ layer.weight.abs().mT
            low, high = (centre - spread).relu(), (centre + spread).relu()
        below = weights.clamp(min=0) @ low[..., None] + weights.clamp(max=0) @ high[..., None]
        return Bounds(below.squeeze(-1) + value)

    def fall(self, state: Perceptron, rows: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        """How far linear functions can fall, or rise, inside the ball."""
        return torch.linalg.vector_norm(rows, ord=state.threat.q, dim=-1) * eps[:, None]
