r"""Lines that support an activation from below, by convex and concave pieces, with all rounding errors counted.

A line $s z + b$ lies below f on [l, u] if $b \leq \min_z f(z) - s z$. On a concave or linear piece of f that minimum is
at an end of the piece. On a convex piece the tangent at any point t lies below f, so that
$f(t) - s t + (f'(t) - s) (z - t)$, at an end of the piece, bounds it; the bound is tight if $f'(t) = s$. Lines above f
are lines below -f.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from certbench.networks.activations import CONVEX, LINEAR, Activation

STEPS = 4
"""Number of steps towards the tightest line. They converge as Newton's: three gave the mean gaps of twenty to seven
digits. A correct line needs none."""


class _Bowls(NamedTuple):
    """The convex pieces of f and those of -f, as many of both: a piece that a side lacks is one that it never meets.

    Attributes:
        pieces: their indices, by side.
        ends: the first and the last points of their parts in the interval.
        met: where such a part has a length.
        start: the first points where a tangent may be taken, inside the pieces; in the interval if possible.
        end: the last ones.
        flattest: the slopes of f or -f at the start.
        steepest: those at the end.
    """

    pieces: list[list[int]]
    ends: Float[Tensor, "2 2 pieces ..."]
    met: Bool[Tensor, "2 pieces ..."]
    start: Float[Tensor, "2 pieces ..."]
    end: Float[Tensor, "2 pieces ..."]
    flattest: Float[Tensor, "2 pieces ..."]
    steepest: Float[Tensor, "2 pieces ..."]

    @classmethod
    def of(cls, f: Activation, low: Tensor, high: Tensor) -> "_Bowls | None":
        """Find the convex pieces."""
        pieces = [[i for i, bend in enumerate(f.bends) if sign * bend == CONVEX] for sign in (1, -1)]
        most, some = max(map(len, pieces)), pieces[0] + pieces[1]
        if not some:
            return None
        real = [[i < len(row) for i in range(most)] for row in pieces]
        pieces = [row + some[:1] * (most - len(row)) for row in pieces]
        joints = beside(f.joints_near(low), low)
        infinite = joints.new_full((1, *joints.shape[1:]), torch.inf)
        edges = torch.cat([-infinite, joints, infinite])
        shape = (2, most, *edges.shape[1:])
        left, right = (torch.stack([edges[i + shift] for row in pieces for i in row]).view(shape) for shift in (0, 1))
        ends = torch.stack([torch.maximum(low, left), torch.minimum(high, right)])
        # Points beyond 1e100 are never touched: products with slopes stay finite.
        far = min(1e100, torch.finfo(low.dtype).max ** 0.5)
        touched = ends.clamp(after(left).clamp(min=-far), before(right).clamp(max=far))
        slopes = signs(touched[0]) * f.slope(touched)
        met = ends[0] < ends[1]
        if not all(map(all, real)):
            met = met & torch.tensor(real, device=low.device).view(2, most, *[1] * low.dim())
        return cls(pieces, ends, met, *touched, *slopes)


@dataclass(frozen=True, eq=False)
class Sides:
    """The functions f and -f on [low, high]; lines are sought below both, one beside the other in a first dimension.

    Attributes:
        plain: whether all intervals are finite, in the domain, and covered by the pieces.
        z: the ends, and the joints between them (elsewhere the low end again) that lines below f or -f may touch.
        value: f and -f there; values that overflow are replaced by large ones.
        loss: bounds of the errors of the values and of what is computed with them.
        bowls: the convex pieces; None if there are none.
    """

    f: Activation
    low: Tensor
    high: Tensor
    plain: bool
    z: Float[Tensor, "points ..."]
    value: Float[Tensor, "2 points ..."]
    loss: Float[Tensor, "2 points ..."]
    bowls: _Bowls | None

    @classmethod
    @torch.no_grad()
    def of(cls, f: Activation, low: Tensor, high: Tensor) -> "Sides":
        """Evaluate f at the ends and at the joints."""
        shape = (low <= high).shape
        low, high = low.expand(shape), high.expand(shape)
        points = [low, high]
        if any(left * right >= 0 for left, right in pairwise(f.bends)):
            for joint, (left, right) in zip(beside(f.joints_near(low), low), pairwise(f.bends), strict=False):
                if left * right >= 0:  # else a convex piece of either side ends there
                    points.append(torch.where((low < joint) & (joint < high), joint, low))
        z = torch.stack(points)
        value = f.value(z)
        error, value = f.error(z, value), torch.stack([value, -value])
        if not finite(value):
            error = torch.where(value[0].isinf() & z.isfinite(), 0.0, error)
            value = torch.where((value == torch.inf) & z.isfinite(), torch.finfo(z.dtype).max / 4, value)
        loss = torch.add(error + tiny(z), value.abs(), alpha=8 * unit(z))
        return cls(f, low, high, plain(f, low, high), z, value, loss, _Bowls.of(f, low, high))

    def offset(self, slope: Float[Tensor, "2 ..."]) -> Float[Tensor, "2 ..."]:
        """Return lower bounds of f(z) - slope z and of -f(z) - slope z on the interval, each for its own slope.

        They are minus infinity where the pieces do not cover the interval, and NaN where an end is.
        """
        low, high, along = self.low, self.high, slope[:, None]
        product = along * self.z
        found = self.value - product - torch.add(self.loss, product.abs(), alpha=8 * unit(product))
        if not self.plain:
            # On a piece that bends down or not at all the slope's limit is its least towards an infinite end. Tangents
            # do the rest.
            rises = (signs(found) * self.f.slope(self.z) - along) * self.z.sign() >= 0
            found = torch.where(self.z.isinf(), torch.where(rises, torch.inf, -torch.inf), found)
        best = found.amin(dim=1)
        if self.bowls is not None:
            best = torch.minimum(best, self._tangents(self.bowls, along).amin(dim=1))
        if not (self.plain and finite(best)):
            good = self.f.covered(low, high) & self.f.defined(low, high) & (best < torch.inf)  # NaN is not good
            best = torch.where(good, best, -torch.inf)
            best = torch.where(low.isnan() | high.isnan() | slope.isnan(), torch.nan, best)
        lag = self.f.excess(low, high)
        return best if lag is None else torch.stack([down(best[0] - lag), best[1]])

    def tightest(self, least: Tensor, largest: Tensor) -> tuple[Float[Tensor, "2 ..."], Float[Tensor, "2 ..."]]:
        """Return slopes and offsets of the lines with the largest integral; f's slopes lie in [least, largest]."""
        bends, (low, high) = self.f.bends, self.z[:2]
        ends = torch.stack([least, -largest]), torch.stack([largest, -least])
        middle = low / 2 + high / 2
        steep = self.f.slope(middle)
        tangent = self.sober(torch.stack([steep, -steep]).clamp(*ends))
        chord = self.chord(least, largest)
        if len(bends) == 1:
            slope = torch.stack([tangent[0], chord[1]] if bends[0] == CONVEX else [chord[0], tangent[1]])
            return slope, self.offset(slope)
        (left, right), (at_left, at_right) = self.z[:2], self.value[:, :2].unbind(dim=1)
        for _ in range(STEPS if any(bend != LINEAR for bend in bends) else len(bends) - 1):
            z, value = self.lowest(chord)
            early = z <= middle
            left, at_left = torch.where(early, z, left), torch.where(early, value, at_left)
            right, at_right = torch.where(early, right, z), torch.where(early, at_right, value)
            chord = (at_right - at_left) / (right - left)
            chord = torch.where(chord.isfinite(), chord, tangent).clamp(*ends)
        first, second = self.offset(chord), self.offset(tangent)
        better = tangent * middle + second > chord * middle + first
        return torch.where(better, tangent, chord), torch.where(better, second, first)

    def chord(self, least: Tensor, largest: Tensor) -> Float[Tensor, "2 ..."]:
        """Return the slope of the chord over the interval, or of f in the middle where there is none, and minus it."""
        (low, high), (first, last) = self.z[:2], self.value[0, :2]
        chord = (last - first) / (high - low)
        if not finite(chord):
            chord = torch.where(chord.isfinite(), chord, self.f.slope(low / 2 + high / 2))
        chord = chord.clamp(least, largest)
        return self.sober(torch.stack([chord, -chord]))

    def sober(self, slope: Float[Tensor, "2 ..."]) -> Float[Tensor, "2 ..."]:
        """Return 0 instead of slopes that are infinite or not covered by the pieces."""
        if self.plain and finite(slope):
            return slope
        good = slope.isfinite() & self.f.covered(self.low, self.high)
        return torch.where(good | self.low.isnan() | self.high.isnan(), slope, 0.0)

    def _touch(self, bowls: _Bowls, slope: Float[Tensor, "2 1 ..."]) -> Float[Tensor, "2 pieces ..."]:
        """Return the points of convex pieces whose tangents are used: inside them, and if possible in the interval."""
        steep = (slope[0, 0], -slope[1, 0])
        touch = [self.f.touch(steep[side], i, self.low) for side, row in enumerate(bowls.pieces) for i in row]
        found = torch.stack(touch).view(2, len(touch) // 2, *touch[0].shape).clamp(bowls.start, bowls.end)
        found = torch.where(slope >= bowls.steepest, bowls.end, found)
        return torch.where(slope <= bowls.flattest, bowls.start, found)

    def _tangents(self, bowls: _Bowls, slope: Float[Tensor, "2 1 ..."]) -> Float[Tensor, "2 pieces ..."]:
        """Bound f(z) - slope z and -f(z) - slope z from below on convex pieces; infinite where these are not met."""
        touch = self._touch(bowls, slope)
        value, steep, sign = self.f.value(touch), self.f.slope(touch), signs(touch)
        fall, error = sign * steep - slope, self.f.slope_error(touch, steep)
        product = slope * touch
        base = sign * value - product
        loss = self.f.error(touch, value) + 8 * unit(touch) * (value.abs() + product.abs()) + tiny(touch)
        run = bowls.ends - touch
        change = fall * run
        heights = base + change - (loss + error * run.abs() + 8 * unit(touch) * change.abs())
        if not self.plain:
            levels = torch.where(torch.stack([-fall, fall]) >= error, base - loss, -torch.inf)
            heights = torch.where(bowls.ends.isinf(), levels, heights)
        return torch.where(bowls.met, heights.amin(dim=0), torch.inf)

    def lowest(self, slope: Float[Tensor, "2 ..."]) -> tuple[Float[Tensor, "2 ..."], Float[Tensor, "2 ..."]]:
        """Return about the lowest points of f(z) - slope z and -f(z) - slope z, and f and -f there: for searching."""
        along, shape = slope[:, None], (2, -1, *slope.shape[1:])
        z, value = self.z.expand(2, *self.z.shape).expand(shape), self.value.expand(shape)
        if self.bowls is not None:
            touch = self._touch(self.bowls, along)
            height = torch.where(self.bowls.met, signs(touch) * self.f.value(touch), torch.inf)
            z, value = torch.cat([z, touch], dim=1), torch.cat([value, height], dim=1)
        tilted = (value - along * z).nan_to_num(torch.inf, torch.inf, -torch.inf)
        place = tilted.min(dim=1, keepdim=True).indices
        return z.gather(1, place).squeeze(1), value.gather(1, place).squeeze(1)


def plain(f: Activation, low: Tensor, high: Tensor) -> bool:
    """Say whether all intervals are finite, in the domain of f, and covered by its pieces."""
    return finite(low, high) and bool((f.covered(low, high) & f.defined(low, high)).all())


def finite(*parts: Tensor) -> bool:
    """Say whether all numbers are finite; it may say no where their sum overflows."""
    return all(math.isfinite(float(part.detach().sum())) for part in parts)


def signs(like: Float[Tensor, "2 ..."]) -> Tensor:
    """Return the signs of f and of -f as factors of both sides."""
    return like.new_tensor([1.0, -1.0]).view(2, *[1] * (like.dim() - 1))


def beside(points: Float[Tensor, "points ..."], low: Tensor) -> Tensor:
    """Return points of all entries, or of each, in a shape that broadcasts with ends behind a first axis."""
    return points.view(len(points), *[1] * (low.dim() + 1 - points.dim()), *points.shape[1:])


def down(z: Tensor) -> Tensor:
    """Return the next smaller numbers."""
    return z.nextafter(torch.full_like(z, -torch.inf))


def up(z: Tensor) -> Tensor:
    """Return the next larger numbers."""
    return z.nextafter(torch.full_like(z, torch.inf))


def after(joint: Tensor) -> Tensor:
    """Return a number little larger than a joint, and no subnormal one, as processors are slow on these."""
    return torch.maximum(up(joint), joint + _small(joint))


def before(joint: Tensor) -> Tensor:
    """Return a number little smaller than a joint, likewise."""
    return torch.minimum(down(joint), joint - _small(joint))


def _small(z: Tensor) -> float:
    return float(torch.finfo(z.dtype).tiny) * 2.0**20


def unit(z: Tensor) -> float:
    """Return the relative error of one rounding in z's precision."""
    return float(torch.finfo(z.dtype).eps) / 2


def tiny(z: Tensor) -> float:
    """Return more than underflow can take from a few operations in z's precision."""
    return float(torch.finfo(z.dtype).tiny) * 16
