"""Continuous piecewise linear functions: ReLU, LeakyReLU, PReLU, clamp, abs and others."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.errors import ConfigError
from certbench.networks.activations import LINEAR, Activation
from certbench.numerics.rounding import TINY, UNIT


@dataclass(frozen=True, eq=False)
class PiecewiseLinear(Activation):
    """A continuous function with constant slopes between its knots.

    Slopes that are no integers, knots and the value may be one rounding off the function that is meant: the error
    bounds allow for it, and so the sixth in a hardsigmoid may be a double.

    Attributes:
        knots: where the slope changes, in increasing order; shape (k,), or (k, size) with an entry per neuron.
        slopes: the slopes, from left to right; shape (k + 1,) or (k + 1, size).
        start: the value at the first knot, or at 0 if there is none; shape () or (size,).
        title: the function's name, for messages; equal functions need not have the same.
    """

    knots: Float[Tensor, "k ..."]
    slopes: Float[Tensor, "pieces ..."]
    start: Float[Tensor, "..."]
    title: str = "PiecewiseLinear"

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ConfigError: the parameters do not fit together, or are not finite.
        """
        parts = (self.knots, self.slopes, self.start)
        if len(self.slopes) != len(self.knots) + 1:
            raise ConfigError(f"{self.title}: give one slope more than knots")
        if not all(bool(part.isfinite().all()) for part in parts):
            raise ConfigError(f"{self.title}: knots, slopes and value must be finite")
        if bool((self.knots.diff(dim=0) < 0).any()):
            raise ConfigError(f"{self.title}: knots must increase")

    @property
    def name(self) -> str:
        """Return the function's name, for messages."""
        return self.title

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Return what tells two functions apart."""
        parts = (part.detach().double().cpu().contiguous() for part in (self.knots, self.slopes, self.start))
        return tuple((tuple(part.shape), (part + 0.0).numpy().tobytes()) for part in parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PiecewiseLinear) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def bends(self) -> tuple[int, ...]:  # type: ignore[override]
        """Return how the pieces bend: they do not."""
        return (LINEAR,) * len(self.slopes)

    @cached_property
    def heights(self) -> list[Tensor]:
        """Return the values at the knots, or at 0 if there is none."""
        found = [self.start]
        for i in range(1, len(self.knots)):
            found.append(_along(self.knots[i - 1], found[-1], self.slopes[i], self.knots[i]))
        return found

    @cached_property
    def through_zero(self) -> bool:
        """Whether the only knot and the value there are 0."""
        return len(self.knots) == 1 and not bool(self.knots.any()) and not bool(self.start.any())

    def _anchors(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return knot, height and slope of the piece that holds z; at a knot those of the piece to its left."""
        knots, slopes = self.knots.to(z), self.slopes.to(z)
        knot, height, slope = knots[0] if len(knots) else z.new_zeros(()), self.heights[0].to(z), slopes[0]
        for i in range(len(knots)):
            right = z > knots[i]
            slope = torch.where(right, slopes[i + 1], slope)
            if i > 0:
                knot, height = torch.where(right, knots[i], knot), torch.where(right, self.heights[i].to(z), height)
        return knot, height, slope

    def value(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f(z)."""
        knot, height, slope = self._anchors(z)
        if self.through_zero:
            return torch.where(slope == 0, 0.0, slope * z)
        return _along(knot, height, slope, z)

    def slope(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f'(z), at a knot that of its left."""
        return self._anchors(z)[2].expand_as(z)

    def supporting(self, low: Float[Tensor, "..."], high: Float[Tensor, "..."]) -> Float[Tensor, "2 ..."] | None:
        """Return a chord's slope, or one of a function's that is convex; not known for more than one knot."""
        if len(self.knots) > 1:
            return None
        slopes = self.slopes.to(low)
        if len(self.knots) == 0:
            inside = chord = slopes[0].expand_as(low)
        else:
            inside = torch.where(low + high > 2 * self.knots[0].to(low), slopes[1], slopes[0])
            first, last = self.value(torch.stack([low, high]))
            chord = (last - first) / (high - low)
            chord = torch.where(chord.isfinite(), chord, inside)
        convex = slopes[-1] >= slopes[0]
        return torch.stack([torch.where(convex, inside, chord), -torch.where(convex, chord, inside)])

    def error(self, z: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Bound the error of `value`; it is 0 where z itself, -z or the value at the first knot is returned."""
        knot, height, slope = self._anchors(z)
        if self.through_zero:
            whole = (slope == 0) | (slope.abs() == 1)
            return torch.where(whole, 0.0, (8 * UNIT) * value.abs() + TINY)
        near = z <= self.knots[1].to(z) if len(self.knots) > 1 else torch.ones_like(z, dtype=torch.bool)
        whole = near & ((slope == 0) | ((slope.abs() == 1) & (height == slope * knot)))
        scale = height.abs() + slope.abs() * (torch.where(slope == 0, 0.0, z.abs()) + knot.abs())
        for i, top in enumerate(self.heights[1:], 1):  # what was added up on the way to the heights
            scale = scale + top.abs().to(z) + (self.slopes[i].abs() * self.knots[i - 1 : i + 1].abs().sum(0)).to(z)
        return torch.where(whole, 0.0, 4 * len(self.slopes) * UNIT * scale + TINY)

    def slope_error(self, z: Float[Tensor, "..."], slope: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Bound the error of `slope`; integers are exact."""
        return torch.where(slope == slope.round(), 0.0, 4 * UNIT * slope.abs())

    def joints_near(self, low: Float[Tensor, "..."]) -> Float[Tensor, "k ..."]:
        """Return the knots."""
        return self.knots.to(low)

    def turning_near(self, low: Float[Tensor, "..."]) -> Float[Tensor, "k ..."]:
        """Return the knots: f is monotone between them."""
        return self.knots.to(low)

    def at(self, neurons: Tensor) -> "PiecewiseLinear":
        """Return the function of some of the neurons alone."""
        knots, slopes = (part[:, neurons] if part.dim() > 1 else part for part in (self.knots, self.slopes))
        start = self.start[neurons] if self.start.dim() else self.start
        return PiecewiseLinear(knots, slopes, start, self.title)


def _along(knot: Tensor, height: Tensor, slope: Tensor, z: Tensor) -> Tensor:
    """Return height + slope (z - knot); only slope z where the line goes through 0, and the height where it is flat."""
    through = torch.where(height == slope * knot, slope * z, height + slope * (z - knot))
    return torch.where(slope == 0, height, through)


def piecewise_linear(
    knots: list[float], slopes: list[float], start: float, name: str = "PiecewiseLinear"
) -> PiecewiseLinear:
    """Return the function with these knots and slopes, and the value `start` at its first knot, else at 0."""
    ends, value = torch.tensor(knots, dtype=torch.float64), torch.tensor(start, dtype=torch.float64)
    return PiecewiseLinear(ends, torch.tensor(slopes, dtype=torch.float64), value, name)


RELU = piecewise_linear([0.0], [0.0, 1.0], 0.0, "ReLU")
"""The function max(z, 0)."""

IDENTITY = piecewise_linear([], [1.0], 0.0, "Identity")
"""The function z."""

ABS = piecewise_linear([0.0], [-1.0, 1.0], 0.0, "Abs")
"""The function |z|."""

HARDSIGMOID = piecewise_linear([-3.0, 3.0], [0.0, 1 / 6, 0.0], 0.0, "Hardsigmoid")
"""The function min(max(z + 3, 0), 6) / 6."""


def leaky_relu(slope: float) -> PiecewiseLinear:
    """Return max(z, 0) + slope min(z, 0)."""
    return piecewise_linear([0.0], [slope, 1.0], 0.0, "LeakyReLU")


def prelu(slopes: Float[Tensor, " size"]) -> PiecewiseLinear:
    """Return max(z, 0) + slope min(z, 0), with one slope per neuron."""
    slopes = slopes.detach().double()
    zero = slopes.new_zeros(1)
    return PiecewiseLinear(zero, torch.stack([slopes, torch.ones_like(slopes)]), zero[0], "PReLU")


def clamp(low: float | None = None, high: float | None = None) -> PiecewiseLinear:
    """Return min(max(z, low), high), as torch's clamp; None or an infinite end leaves its side open.

    ReLU6, Hardtanh and ReLU are such functions.

    Raises:
        ConfigError: an end is NaN, or the function is constantly infinite.
    """
    low = -math.inf if low is None else float(low)
    high = math.inf if high is None else float(high)
    if math.isnan(low) or math.isnan(high):
        raise ConfigError("clamp: the ends must be numbers, or None for no end")
    if low >= high:
        return piecewise_linear([], [0.0], high, "Clamp")
    knots = [end for end in (low, high) if math.isfinite(end)]
    slopes = [0.0] * (low > -math.inf) + [1.0] + [0.0] * (high < math.inf)
    return piecewise_linear(knots, slopes, knots[0] if knots else 0.0, "Clamp")
