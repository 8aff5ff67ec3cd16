r"""Local Lipschitz constants of ReLU networks: how fast margins can fall inside a ball (Hein and Andriushchenko, 2017).

Wherever pre-activations lie in [l, u], a ReLU's slope lies in an interval, and so the Jacobian in a set of matrices.
Robustness asks for less than a Lipschitz constant of the ball. For $|f(x + \delta) - f(x)|$ alone, slopes of chords
from the centre are enough, $(\max(z, 0) - \max(z_0, 0)) / (z - z_0)$. For unstable neurons they lie in

$$[z_0 / (z_0 - l), 1] \text{ if } z_0 \geq 0, \qquad [0, u / (u - z_0)] \text{ if } z_0 < 0,$$

since a chord of a convex function from a fixed point grows with its other end. Slopes of tangents are 0 or 1 there, but
they allow the radial integral $\int_0^r L(s) \, ds$ over smaller balls instead of $r L(r)$; chords do not.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.core import ball
from certbench.core.certifier import MarginCertifier
from certbench.core.classifier import Classifier
from certbench.core.margins import SLACK, Bounds
from certbench.core.memory import Cost
from certbench.core.ranges import PositiveInt
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError
from certbench.networks.layers import Network
from certbench.numerics.rounding import gamma
from certbench.verifiers.bounds.backward import layer_bounds
from certbench.verifiers.bounds.costs import Sizes, relaxed, rows_of
from certbench.verifiers.bounds.region import LayerBounds, Region
from certbench.verifiers.bounds.rounding import bound_errors, program_error
from certbench.verifiers.bounds.state import NetworkState


@dataclass(frozen=True, eq=False)
class Slopes:
    """Intervals of the slopes of all ReLUs, by hidden layer, one row per input; for stable ones low = high."""

    low: tuple[Float[Tensor, "n _"], ...]
    high: tuple[Float[Tensor, "n _"], ...]

    @staticmethod
    def tangents(bounds: LayerBounds) -> "Slopes":
        """Return the slopes of tangents, wherever the bounds hold."""
        pairs = list(zip(bounds.lower, bounds.upper, strict=True))
        return Slopes(
            tuple((low >= 0).to(low) for low, _ in pairs),
            tuple(((high > 0) | (low >= 0)).to(low) for low, high in pairs),
        )

    @staticmethod
    def chords(
        bounds: LayerBounds, network: Network, x: Float[Tensor, "n d"], errors: Sequence[Tensor] | None = None
    ) -> "Slopes":
        """Return the slopes of chords from `x` to any point where the bounds hold.

        `errors` says, by layer, how far off the values at x may be.
        """
        tangents = Slopes.tangents(bounds)
        low, high = [], []
        for i, z in enumerate(network.preactivations(x)[:-1]):
            error = torch.zeros_like(z) if errors is None else errors[i]
            unstable = bounds.unstable(i)
            least = torch.where(z > error, (z - error) / (z - error - bounds.lower[i]), 0.0)
            most = torch.where(z < -error, bounds.upper[i] / (bounds.upper[i] - z - error), 1.0)
            low.append(torch.where(unstable, least, tangents.low[i]))
            high.append(torch.where(unstable, most, tangents.high[i]))
        return Slopes(tuple(low), tuple(high))


@dataclass(frozen=True, eq=False)
class Steepness:
    """Bounds of the fall of k linear functions of the outputs, from an input to any point of its ball.

    Attributes:
        slope: upper bound of the fall, divided by the distance.
        fall: upper bound of the fall in the whole ball, where the domain leaves less than slope * eps.
    """

    slope: Float[Tensor, "n k"]
    fall: Float[Tensor, "n k"] | None = None

    @staticmethod
    def between(low: Float[Tensor, "n k d"], high: Float[Tensor, "n k d"], region: Region) -> "Steepness":
        """Bound the steepness of all matrices whose entries lie between two others."""
        slope = ball.length(torch.maximum(-low, high), region.threat.q)
        if region.threat.domain is None:
            return Steepness(slope)
        return Steepness(slope, ball.fall_between(low, high, region.threat, region.x, region.eps))


class LocalLipschitz(MarginCertifier[NetworkState]):
    """A certifier that bounds how steep margins are, over all slopes that a ball allows.

    Subclasses have the options `chords`, whether slopes are those of chords from the input; `shells`, the number of
    parts of the ball in the radial integral (1: no integral; only for tangents); and `rounding_safe`, whether rounding
    errors are counted, also those of the float program.
    """

    chords: bool
    shells: PositiveInt
    rounding_safe: bool

    norms: ClassVar[frozenset[float]] = frozenset({1.0, 2.0, math.inf})

    def check_together(self) -> None:
        """Refuse options that are unsound together."""
        if self.chords and self.shells > 1:
            raise ConfigError(
                "the radial integral is over tangents; chords start at the input: shells need chords: false",
                ("shells",),
            )

    @abstractmethod
    def steepness(
        self, state: NetworkState, region: Region, rows: Float[Tensor, "n k outputs"], bounds: LayerBounds
    ) -> Steepness:
        """Bound the steepness of `rows` times the outputs, over all matrices that slopes within these bounds allow."""

    def slopes(self, state: NetworkState, region: Region, bounds: LayerBounds) -> Slopes:
        """Return slopes of chords or of tangents, as the options say."""
        if not self.chords:
            return Slopes.tangents(bounds)
        errors = bound_errors(state.network, region) if self.rounding_safe else None
        return Slopes.chords(bounds, state.network, region.x, errors)

    def intermediate(self) -> str:
        """Name CROWN as the method."""
        return "crown"

    def arithmetic(self, state: NetworkState) -> str:
        """Return the float program's arithmetic, if its errors are counted."""
        return str(state.program) if self.rounding_safe else "real"

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> NetworkState:
        """Read the network."""
        return self.fitting(NetworkState.of(classifier, threat))

    def cost(self, state: NetworkState) -> Cost:
        """Predict CROWN's bounds and the steepness, for each shell."""
        held, work = self.slopes_cost(state)
        found = relaxed(state, state.network, more=held, work=work)
        return replace(found, work=self.shells * found.work)

    def slopes_cost(self, state: NetworkState) -> tuple[float, float]:
        """Predict the steepness of one input: entries at once, and multiplications."""
        sizes, rows = Sizes.of(state.network), rows_of(state)
        return 2.0 * rows * sizes.live, 2.0 * rows * sizes.below[-1]

    @final
    @torch.no_grad()
    def lower(
        self,
        state: NetworkState,
        x: Float[Tensor, "n ..."],
        rows: Float[Tensor, "n k outputs"],
        eps: Float[Tensor, " n"],
    ) -> Bounds:
        """Subtract from the value at the centre the steepness times the distance, or its integral over the shells."""
        network, flat, parts = state.network, x.flatten(1), []
        for shell in range(1, self.shells + 1):
            region = Region(state.threat, flat, eps * (shell / self.shells))
            errors = bound_errors(network, region) if self.rounding_safe else None
            bounds = layer_bounds(network, region, errors=errors)
            part = self.steepness(state, region, rows, bounds)
            if self.rounding_safe:
                part = Steepness(raised(network, len(network.hidden), rows, part.slope, state.threat.q))
            parts.append(part)
        # Bounds in a ball hold in the balls inside it.
        slope = torch.stack([part.slope for part in parts]).flip(0).cummin(dim=0).values.mean(dim=0)
        centre = (rows @ network.preactivations(flat)[-1][..., None]).squeeze(-1)
        if self.rounding_safe:
            error = program_error(network, region, bounds, rows, state.program)
            return Bounds.steep(centre, slope, eps).less(error)
        found, fall = Bounds.steep(centre, slope, eps), parts[0].fall
        if self.shells > 1 or fall is None:
            return found
        return replace(found, lower=torch.maximum(found.lower, centre - (1 + SLACK) * fall))


def raised(
    network: Network, layer: int, rows: Float[Tensor, "n k outputs"], slope: Float[Tensor, "n k"], q: float
) -> Float[Tensor, "n k"]:
    r"""Raise the slope of `rows` times the outputs of `layer` by what rounding may have done to it.

    Whatever the slopes of the ReLUs, moduli of all numbers on the way sum up to no more than (layers + 1) M, entry by
    entry, M being the product of the moduli of all weights. With m the length of a row of M, a slope that is a sum of
    such numbers is off by $\gamma (l + 1) m$ at most, and the square of one that is a Gram norm by
    $\gamma (l + 1)^2 m^2$; $4 \gamma (l + 1)^2 m^2$ added to the square covers both, as no slope exceeds (l + 1) m.
    """
    moduli: dict[int, Tensor] = {layer + 1: rows.abs()}
    while max(moduli) > 0:
        at = max(moduli) - 1
        after = moduli.pop(at + 1)
        for source, path in network.layers[at].paths.items():
            pulled = path.transpose(after.flatten(0, 1)).view(*rows.shape[:2], path.inputs)
            moduli[source] = moduli[source] + pulled if source in moduli else pulled
    steps = 2 * network.inputs + 64 + sum(4 * (layer.roundings + layer.outputs) for layer in network.layers)
    most = (len(network.layers) + 1) * ball.length(moduli[0], q)
    scale = torch.maximum(slope, most).clamp(min=1e-300)  # squares of small numbers underflow
    return scale * ((slope / scale).square() + 4 * gamma(steps) * (most / scale).square()).sqrt() * (1 + 1e-15)
