r"""Functions z g(z) with a gate g that rises from 0 to 1: GELU, SiLU, Mish, hardswish.

The smooth ones are concave, convex, concave, with joints c < 0 < d. Their slope falls from 0 to f'(c) < 0, rises to
f'(d) > 1 and falls to 1, so that it has one zero, and f one turning point.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.networks.activations import CONCAVE, CONVEX, LINEAR, Activation
from certbench.numerics.rounding import TINY, UNIT

FAR = 40.0
"""Distance from the joints at which tables of slopes end. What lies beyond is nearly linear."""

POINTS = 2**13
"""Number of points of a table. Slopes between them are then right to about 1e-6, which lines do not show."""

FARTHEST = 1e6
"""Largest place for which tangents from an end are tabulated; beyond it those of this place are used."""


class Gated(Activation):
    """A smooth function z g(z); the points of given slopes, or of tangents, are interpolated from tables."""

    bends = (CONCAVE, CONVEX, CONCAVE)

    def supporting(self, low: Float[Tensor, "..."], high: Float[Tensor, "..."]) -> Float[Tensor, "2 ..."]:
        """Return the slopes of tangents, of chords, or of tangents that meet f again at an end.

        Below f, an end on a concave piece has a tangent that touches the convex piece. Above f, a right end between c
        and 0 has one that touches the left concave piece, and a left end between 0 and d one that touches the right:
        beyond, f has the wrong sign or f - z has. Where they touch is interpolated in tables.
        """
        left, right = self.joints
        middle = low / 2 + high / 2
        touch = _interpolated(self, torch.stack([left - low, high - right, left / high - 1, right / low - 1]))
        start = torch.where(low < left, torch.minimum(touch[0], high), low)
        end = torch.where(high > right, torch.maximum(touch[1], low), high)
        crossing = start > end
        first = torch.where(crossing | (middle < start), low, end)
        last = torch.where(~crossing & (middle < start), start, high)
        below = (start <= middle) & (middle <= end)
        begin = torch.where(high > left, torch.where(high < 0, torch.maximum(touch[2], low), low), high)
        stop = torch.where(low < right, torch.where(low > 0, torch.minimum(touch[3], high), high), low)
        above = (middle < begin) | (middle > stop)
        first, last = torch.stack([first, begin]), torch.stack([last, stop])
        at_first, at_last = self.value(torch.stack([first, last]))
        smooth = torch.stack([below, above]) | (first == last)
        slope = torch.where(smooth, self.slope(middle), (at_last - at_first) / (last - first))
        return torch.stack([slope[0], -slope[1]])

    def touch(self, slope: Float[Tensor, "..."], piece: int, low: Tensor) -> Float[Tensor, "..."]:
        """Return about the point of a piece where f' is `slope`."""
        slopes, points = _table(self, piece, slope.dtype, slope.device)
        place = torch.searchsorted(slopes, slope.contiguous()).clamp(1, len(slopes) - 1)
        below, above = slopes[place - 1], slopes[place]
        share = ((slope - below) / (above - below)).nan_to_num(0.0).clamp(0, 1)
        return points[place - 1] + share * (points[place] - points[place - 1])


@lru_cache(maxsize=64)
def _table(f: Activation, piece: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return slopes of a piece in increasing order, and their points."""
    left, right = f.joints
    ends = ((left - FAR, left), (left, right), (right, right + FAR))[piece]
    points = torch.linspace(*ends, POINTS, dtype=torch.float64)
    slopes, order = f.slope(points).sort()
    return slopes.to(device, dtype), points[order].to(device, dtype)


def _interpolated(f: Gated, places: Float[Tensor, "4 ..."]) -> Float[Tensor, "4 ..."]:
    """Return about where tangents from ends touch; see `_tangents`."""
    table = _tangents(f, places.dtype, places.device)
    at = places.clamp(0, FARTHEST).nan_to_num(0.0).log1p() * ((POINTS - 1) / math.log1p(FARTHEST))
    row = at.long().clamp(max=POINTS - 2)
    index = row + POINTS * torch.arange(4, device=at.device).view(4, *[1] * (at.dim() - 1))
    found: Tensor = torch.lerp(table.take(index), table.take(index + 1), at - row)
    return found


@lru_cache(maxsize=64)
def _tangents(f: Gated, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "4 points"]:
    """Tabulate over log(1 + p) where tangents from the ends c - p, d + p, c / (1 + p) and d / (1 + p) touch.

    The first two touch the convex piece, the others the left and the right concave one. The gap between f at the end
    and the tangent at a point is monotone in that point on each piece, and changes its sign: bisection finds where.
    """
    left, right = f.joints
    p = torch.linspace(0, math.log1p(FARTHEST), POINTS, dtype=torch.float64).expm1()
    ends = torch.stack([left - p, right + p, left / (1 + p), right / (1 + p)])
    low, high, sign = torch.tensor(
        [
            [left, left, left - FAR, right],
            [right, right, left, right + FAR],
            [-1.0, 1.0, -1.0, 1.0],  # that of the gap, left of the point sought
        ],
        dtype=torch.float64,
    )[..., None]
    low, high = low.expand_as(ends), high.expand_as(ends)
    for _ in range(60):
        t = (low + high) / 2
        earlier = sign * (f.value(ends) - f.value(t) - f.slope(t) * (ends - t)) > 0
        low, high = torch.where(earlier, t, low), torch.where(earlier, high, t)
    touch: Tensor = high.to(device, dtype)
    return touch


@dataclass(frozen=True)
class Gelu(Gated):
    r"""$z \Phi(z)$ with the normal distribution function. $f'' = \varphi(z) (2 - z^2)$ changes sign at $\pm\sqrt 2$."""

    joints = (-math.sqrt(2), math.sqrt(2))
    turning = (-0.7517915246935645,)
    limits = (-0.1701, math.inf)

    def value(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f(z)."""
        return z.clamp(min=-100) * _normal(z)

    def slope(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f'(z)."""
        near = z.clamp(-100, 100)  # beyond, the density is 0
        return _normal(z) + near * (near.square() * -0.5).exp() * (1 / math.sqrt(2 * math.pi))

    def error(self, z: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Bound the error of `value`: erfc magnifies that of its argument by up to z^2 on the left."""
        return UNIT * (64 + 8 * z.clamp(-100, 0).square()) * value.abs() + TINY

    def slope_error(self, z: Float[Tensor, "..."], slope: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        r"""Bound the error of `slope`: left of -2 its terms are at most 4 |f'|, as $\Phi < \varphi / |z|$ there."""
        relative = (256 + 32 * z.clamp(-100, 0).square()) * slope.abs()
        return UNIT * torch.where(z < -2, relative, 512.0) + TINY


@dataclass(frozen=True)
class GeluTanh(Gated):
    r"""$z (1 + \tanh u) / 2$ with $u = k (z + a z^3)$, $k = \sqrt{2 / \pi}$ and $a = 0.044715$.

    f'' has the sign of $2 w' + z w'' - z w'^2 \tanh u$ for $w = 2 u$, where $2 w' + z w'' = 4 k (1 + 6 a z^2) > 0$. The
    quotient $z w'^2 \tanh(u) / (2 w' + z w'')$ is $k z \tanh(u) (1 + 9 a^2 z^4 / (1 + 6 a z^2))$, which rises with |z|
    from 0 to infinity: f'' has one zero on each side.
    """

    joints = (-1.4185040087908284, 1.4185040087908284)
    turning = (-0.7524614220710163,)
    limits = (-0.1701, math.inf)

    def value(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f(z)."""
        return z.clamp(min=-100) * torch.sigmoid(_cubic(z))

    def slope(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f'(z)."""
        near = z.clamp(-100, 100)  # beyond, the slope of the gate is 0
        w, rise = _cubic(near), 2 * ROOT * (1 + 3 * CUBIC * near.square())
        gate = torch.sigmoid(w)
        return gate + near * rise * gate * torch.sigmoid(-w)

    def error(self, z: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Bound the error of `value`: that of w counts w times on the left."""
        return UNIT * (64 + 16 * _cubic(z.clamp(-100, 0)).abs()) * value.abs() + TINY

    def slope_error(self, z: Float[Tensor, "..."], slope: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Bound the error of `slope`: left of -2 its terms are at most 2 |f'|."""
        relative = (256 + 64 * _cubic(z.clamp(-100, 0)).abs()) * slope.abs()
        return UNIT * torch.where(z < -2, relative, 1024.0) + TINY


@dataclass(frozen=True)
class Silu(Gated):
    r"""$z \sigma(z)$. f'' has the sign of $2 - z \tanh(z / 2)$, which falls with |z|."""

    joints = (-2.3993572805154677, 2.3993572805154677)
    turning = (-1.2784645427610738,)
    limits = (-0.2785, math.inf)

    def value(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f(z)."""
        return z.clamp(min=-1e3) * torch.sigmoid(z)

    def slope(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f'(z)."""
        gate = torch.sigmoid(z)
        return gate + z.clamp(-1e3, 1e3) * gate * torch.sigmoid(-z)

    def slope_error(self, z: Float[Tensor, "..."], slope: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Bound the error of `slope`: left of -3 its terms are at most 3 |f'|."""
        return UNIT * torch.where(z < -3, 256 * slope.abs(), 256.0) + TINY


@dataclass(frozen=True)
class Mish(Gated):
    r"""$z T(z)$ with $T = \tanh \log(1 + w) = (w^2 + 2 w) / (w^2 + 2 w + 2)$, $w = e^z$.

    $T' = 4 w (w + 1) / (w^2 + 2 w + 2)^2$, and f'' has the sign of $A + z q$ with $A = 2 (w + 1) (w^2 + 2 w + 2) > 0$
    and $q = 2 + 2 w - 3 w^2 - 2 w^3$. The quotient q / A falls with w, as
    $(q' A - q A') / 2 = -3 w^4 - 20 w^3 - 36 w^2 - 24 w - 4$. It is 0 at some $z_0 \in (-0.2, 0)$. As z falls from
    $z_0$, $-z q / A$ rises, and as z rises from 0 likewise; in between $z q > 0$. So f'' has one zero on each side.
    """

    joints = (-2.2563763963607932, 1.4905711794854284)
    turning = (-1.192431214515495,)
    limits = (-0.3089, math.inf)

    def value(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f(z)."""
        return z.clamp(min=-1e3) * _mish_gate(z)[0]

    def slope(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f'(z)."""
        gate, rise = _mish_gate(z)
        return gate + z.clamp(-1e3, 1e3) * rise

    def error(self, z: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Bound the error of `value`."""
        return (64 * UNIT) * value.abs() + TINY

    def slope_error(self, z: Float[Tensor, "..."], slope: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Bound the error of `slope`: left of -3 its terms are at most 3 |f'|."""
        return UNIT * torch.where(z < -3, 512 * slope.abs(), 512.0) + TINY


@dataclass(frozen=True)
class Hardswish(Activation):
    """z min(max(z + 3, 0), 6) / 6: zero, a parabola, the identity; both joints are kinks that bend down."""

    joints = (-3.0, 3.0)
    bends = (LINEAR, CONVEX, LINEAR)
    turning = (-3.0, -1.5)
    limits = (-0.375, math.inf)

    def value(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f(z)."""
        near = z.clamp(-3, 3)
        return torch.where(z >= 3, z, near * (near + 3) / 6)

    def slope(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f'(z); at a joint that of the parabola."""
        return torch.where(z > 3, 1.0, torch.where(z < -3, 0.0, (2 * z + 3) / 6))

    def touch(self, slope: Float[Tensor, "..."], piece: int, low: Tensor) -> Float[Tensor, "..."]:
        """Return the point of the parabola where f' is `slope`."""
        return 3 * slope - 1.5

    def slope_error(self, z: Float[Tensor, "..."], slope: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Bound the error of `slope`."""
        return torch.where(z.abs() > 3, 0.0, torch.full_like(z, 16 * UNIT))


ROOT = math.sqrt(2 / math.pi)
"""The factor k of the tanh approximation of GELU."""

CUBIC = 0.044715
"""The coefficient a of the tanh approximation of GELU."""


def _normal(z: Tensor) -> Tensor:
    """Return the normal distribution function, with a small relative error also far to the left."""
    twice: Tensor = torch.special.erfc(z * -math.sqrt(0.5))
    return twice * 0.5


def _cubic(z: Tensor) -> Tensor:
    """Return 2 k (z + a z^3)."""
    return 2 * ROOT * (z + CUBIC * z * z * z)


def _mish_gate(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return T(z) and T'(z), from positive terms and exp(-|z|) alone."""
    w = (-z.abs()).exp()
    left, right = w.square() + 2 * w, 1 + 2 * w
    gate = torch.where(z <= 0, left / (left + 2), right / (right + 2 * w.square()))
    rise = torch.where(
        z <= 0, (w.square() + w) / (left + 2).square(), (w.square() + w**3) / (right + 2 * w**2).square()
    )
    return gate, 4 * rise
