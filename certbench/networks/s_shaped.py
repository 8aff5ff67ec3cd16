"""Functions that rise like an S: convex left of 0, concave right of it, odd up to a constant."""

import math
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.networks.activations import CONCAVE, CONVEX, Activation
from certbench.numerics.rounding import TINY, UNIT

FARTHEST = 1e6
"""Largest end of an interval for which a tangent's point is tabulated; beyond it that of this end is used."""


class SShaped(Activation):
    """A function whose slope is even and falls with |z|; the joint 0 is exact."""

    joints = (0.0,)
    bends = (CONVEX, CONCAVE)
    limits = (-1.0, 1.0)

    def touch(self, slope: Float[Tensor, "..."], piece: int, low: Tensor) -> Float[Tensor, "..."]:
        """Return about the point of a piece where f' is `slope`."""
        distance = self.distance(slope)
        return -distance if piece == 0 else distance

    def distance(self, slope: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return about the |z| where f' is `slope`."""
        raise NotImplementedError

    def supporting(self, low: Float[Tensor, "..."], high: Float[Tensor, "..."]) -> Float[Tensor, "2 ..."]:
        """Return the slope of a tangent, of a chord, or of the tangent that meets f again at the right end.

        That tangent touches f left of 0; where it does is interpolated in a table. Below -f it is the same, turned.
        """
        low, high = torch.stack([low, -high]), torch.stack([high, -low])
        middle = low / 2 + high / 2
        touch = torch.where(high > 0, -self._table(high), high)
        start = torch.maximum(low, touch)
        last, first = self.value(torch.stack([high, start]))
        slope = torch.where((middle < touch) | (start == high), self.slope(middle), (last - first) / (high - start))
        return torch.stack([slope[0], -slope[1]])

    def _table(self, end: Tensor) -> Tensor:
        """Return about the |z| of the point whose tangent meets f again at `end` > 0."""
        table = _touching(self).to(end)
        at = end.clamp(min=0, max=FARTHEST).log1p() * ((len(table) - 1) / math.log1p(FARTHEST))
        left = at.nan_to_num(0.0).long().clamp(max=len(table) - 2)
        return torch.lerp(table[left], table[left + 1], at - left)


@dataclass(frozen=True)
class Sigmoid(SShaped):
    """1 / (1 + exp(-z)). Its slope is that of tanh(z / 2) / 2."""

    limits = (0.0, 1.0)

    def value(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f(z)."""
        return torch.sigmoid(z)

    def slope(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f'(z)."""
        return torch.sigmoid(z) * torch.sigmoid(-z)

    def distance(self, slope: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return 2 arcosh of the root of 1 / (4 slope)."""
        return 2 * _arcosh(4 * slope)


@dataclass(frozen=True)
class Tanh(SShaped):
    """tanh(z). Its slope 1 / cosh(z)^2 falls with |z|."""

    def value(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f(z)."""
        return z.tanh()

    def slope(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f'(z)."""
        small = (-2 * z.abs()).exp()
        return 4 * small / (1 + small).square()

    def distance(self, slope: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return arcosh of the root of 1 / slope."""
        return _arcosh(slope)


@dataclass(frozen=True)
class Erf(SShaped):
    """The error function. Its slope is a Gaussian density."""

    def value(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f(z)."""
        return torch.erf(z)

    def slope(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f'(z)."""
        return (-z.square()).exp() * (2 / math.sqrt(math.pi))

    def slope_error(self, z: Float[Tensor, "..."], slope: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Bound the error of `slope`, with that of the exponent."""
        return UNIT * (32 + 4 * z.square().clamp(max=1e3)) * slope + TINY

    def distance(self, slope: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return about the |z| where f' is `slope`."""
        return (-(slope * (math.sqrt(math.pi) / 2)).clamp(min=0, max=1).log()).sqrt()


@dataclass(frozen=True)
class Atan(SShaped):
    """arctan(z). Its slope is 1 / (1 + z^2)."""

    limits = (-1.5707963267948968, 1.5707963267948968)

    def value(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f(z)."""
        return z.atan()

    def slope(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f'(z)."""
        return 1 / (1 + z.square())

    def distance(self, slope: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return about the |z| where f' is `slope`."""
        return (1 / slope - 1).clamp(min=0).sqrt()


@dataclass(frozen=True)
class Softsign(SShaped):
    """z / (1 + |z|). Its slope is 1 / (1 + |z|)^2."""

    def value(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f(z)."""
        limit = torch.finfo(z.dtype).max
        z = z.clamp(-limit, limit)
        return z / (1 + z.abs())

    def slope(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f'(z)."""
        return 1 / (1 + z.abs()).square()

    def distance(self, slope: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return about the |z| where f' is `slope`."""
        return (slope.rsqrt() - 1).clamp(min=0)


@cache
def _touching(f: SShaped) -> Tensor:
    """Tabulate, over log(1 + u), the |t| where f'(t) (u - t) = f(u) - f(t), which rises with t < 0, by bisection."""
    u = torch.linspace(0, math.log1p(FARTHEST), 4097, dtype=torch.float64).expm1()
    low, high = -2 * (1 + u), torch.zeros_like(u)
    for _ in range(80):
        t = (low + high) / 2
        above = f.slope(t) * (u - t) > f.value(u) - f.value(t)
        low, high = torch.where(above, low, t), torch.where(above, t, high)
    return -high


def _arcosh(reciprocal: Tensor) -> Tensor:
    """Return arcosh(1 / sqrt(r)) for r in (0, 1], also where 1 / r overflows."""
    root = reciprocal.clamp(min=0, max=1).sqrt()
    return ((1 + (1 - root.square()).clamp(min=0).sqrt()) / root).log()
