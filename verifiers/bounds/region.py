"""Balls within a domain, bounds of layers, and the lines that they give around activations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.core import ball
from certbench.core.threat import ThreatModel
from certbench.networks.layers import Network
from certbench.verifiers.bounds.lines import Lines
from certbench.verifiers.bounds.relaxations import around, picked

HALVINGS = 8
"""Number of halvings in the search for the multiplier of a cut. A bound needs none."""


@dataclass(frozen=True, eq=False)
class Region:
    """Balls around n flat inputs, each of its own radius, cut by the threat model's domain.

    Attributes:
        threat: the norm and the domain.
        x: the inputs.
        eps: the radii.
        cuts: linear functions that are at least 0 on the part of the ball that counts; None: all of it does.
    """

    threat: ThreatModel
    x: Float[Tensor, "n d"]
    eps: Float[Tensor, " n"]
    cuts: "Linear | None" = None

    def __len__(self) -> int:
        """Return the number of inputs."""
        return len(self.x)

    def __getitem__(self, index: Tensor | slice) -> "Region":
        """Select some of the balls."""
        cuts = None if self.cuts is None else Linear(self.cuts.a[index], self.cuts.b[index])
        return replace(self, x=self.x[index], eps=self.eps[index], cuts=cuts)

    def minimum(self, a: Float[Tensor, "n k d"], b: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Return a lower bound of a . x + b over each ball, or over the part of it that counts."""
        return self._over_ball(*self.tilted(a, b))

    def tilted(
        self, a: Float[Tensor, "n k d"], b: Float[Tensor, "n k"]
    ) -> tuple[Float[Tensor, "n k d"], Float[Tensor, "n k"]]:
        """Return linear functions below a . x + b on the part of the ball that counts, with a large minimum over all.

        There (a - t g) . x + b - t h lies below for every t >= 0 and every cut g . x + h >= 0. The slope of its minimum
        in t is minus the cut at the minimiser, so that a bisection finds a good t, for one cut after the other.
        """
        if self.cuts is None:
            return a, b
        for cut in range(self.cuts.a.shape[1]):
            g, h = self.cuts.a[:, cut, None], self.cuts.b[:, cut, None]
            unit = ball.length(a, self.threat.q) / ball.length(g, self.threat.q).clamp(min=1e-300)
            best, found = torch.zeros_like(unit), self._over_ball(a, b)
            low, high = torch.zeros_like(unit), torch.ones_like(unit)
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                t = unit * middle / (1 - middle)
                slope = a - t[..., None] * g
                bound = self._over_ball(slope, b - t * h)
                best, found = torch.where(bound > found, t, best), torch.where(bound > found, bound, found)
                point = self.x[:, None] + ball.steepest(slope, self.threat, self.x, self.eps)
                short = (g * point).sum(dim=-1) + h < 0  # the cut is not kept: a larger t is better
                low, high = torch.where(short, middle, low), torch.where(short, high, middle)
            a, b = a - best[..., None] * g, b - best * h
        return a, b

    def _over_ball(self, a: Float[Tensor, "n k d"], b: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        if self.threat.p == math.inf:
            low, high = self.box()
            centre, half = (low + high) / 2, (high - low) / 2
            return (a @ centre[..., None]).squeeze(-1) - (a.abs() @ half[..., None]).squeeze(-1) + b
        return (a @ self.x[..., None]).squeeze(-1) + b - ball.fall(a, self.threat, self.x, self.eps)

    def box(self) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """Return the smallest boxes around the balls."""
        return ball.box(self.threat, self.x, self.eps)


@dataclass(frozen=True, eq=False)
class LayerBounds:
    """Bounds of every pre-activation of the hidden layers, one row per input.

    Attributes:
        lower: lower bounds, by hidden layer, in order.
        upper: upper bounds, likewise.
        method: name of the method that made them; certificates state it.
    """

    lower: tuple[Float[Tensor, "n _"], ...]
    upper: tuple[Float[Tensor, "n _"], ...]
    method: str
    drawn: dict[int, Lines] = field(default_factory=dict, repr=False)
    """Lines around the activations of layers, that were found before."""

    def __getitem__(self, index: Tensor | slice) -> "LayerBounds":
        """Select some of the inputs."""
        return LayerBounds(
            tuple(low[index] for low in self.lower),
            tuple(up[index] for up in self.upper),
            self.method,
            {layer: picked(lines, index) for layer, lines in self.drawn.items()},
        )

    def lines(self, network: Network, layer: int) -> Lines:
        """Return lines below and above the activation of a hidden layer, each entry (n, 1, size)."""
        if layer not in self.drawn:
            low, high, parallel = self.lower[layer][:, None], self.upper[layer][:, None], self.method == "fast-lin"
            self.drawn[layer] = around(network.activation(layer), low, high, parallel)
        return self.drawn[layer]

    def unstable(self, layer: int) -> Tensor:
        """Say which neurons of a hidden layer may lie on either side of zero: (n, size)."""
        return (self.lower[layer] < 0) & (self.upper[layer] > 0)

    def upto(self, layer: int) -> "LayerBounds":
        """Keep the hidden layers before `layer` alone."""
        drawn = {at: lines for at, lines in self.drawn.items() if at < layer}
        return LayerBounds(self.lower[:layer], self.upper[:layer], self.method, drawn)

    def widened(self, errors: Sequence[Tensor] | None) -> "LayerBounds":
        """Widen the bounds by `errors`, by layer: what rounding may have done to them."""
        if errors is None:
            return self
        lower = tuple(low - error for low, error in zip(self.lower, errors, strict=False))
        return LayerBounds(
            lower, tuple(high + error for high, error in zip(self.upper, errors, strict=False)), self.method
        )

    def tightened(self, other: "LayerBounds", method: str) -> "LayerBounds":
        """Take the better of two bounds, neuron by neuron; the result is sound, as both are."""
        return LayerBounds(
            tuple(torch.maximum(a, b) for a, b in zip(self.lower, other.lower, strict=True)),
            tuple(torch.minimum(a, b) for a, b in zip(self.upper, other.upper, strict=True)),
            method,
        )


@dataclass(frozen=True, eq=False)
class Linear:
    """Linear functions of the flat input, k per input of a batch: a . x + b."""

    a: Float[Tensor, "n k d"]
    b: Float[Tensor, "n k"]

    def at(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Return their values at inputs."""
        return (self.a @ x[..., None]).squeeze(-1) + self.b
