r"""Lines that support an activation from below, by convex and concave pieces, with all rounding errors counted.

A line $s z + b$ lies below f on [l, u] if $b \leq \min_z f(z) - s z$. On a concave or linear piece of f that minimum is
at an end of the piece. On a convex piece the tangent at any point t lies below f, so that
$f(t) - s t + (f'(t) - s) (z - t)$, at an end of the piece, bounds it; the bound is tight if $f'(t) = s$. Lines above f
are lines below -f.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from certbench.networks.activations import CONVEX, LINEAR, Activation

STEPS = 4
"""Number of steps towards the tightest line. They converge as Newton's: three gave the mean gaps of twenty to seven
digits. A correct line needs none."""


class _Point(NamedTuple):
    """A point of the interval, and sign f there with a bound of its error."""

    z: Tensor
    value: Tensor
    error: Tensor


class _Bowl(NamedTuple):
    """A convex piece of sign f.

    Attributes:
        piece: its index.
        first: the first point of its part in the interval.
        last: the last one; less than the first if the piece lies elsewhere.
        start: the first point where a tangent may be taken, inside the piece; in the interval if possible.
        end: the last one.
        flattest: the slope of sign f at the start.
        steepest: the slope of sign f at the end.
    """

    piece: int
    first: Tensor
    last: Tensor
    start: Tensor
    end: Tensor
    flattest: Tensor
    steepest: Tensor


@dataclass(frozen=True, eq=False)
class Side:
    """The function sign f on [low, high]; lines are sought below it.

    Attributes:
        points: the ends, and the joints between them (elsewhere an end again) that no convex piece has as its end.
        bowls: its convex pieces.
        bounded: whether all ends are finite.
    """

    f: Activation
    low: Tensor
    high: Tensor
    sign: int
    points: list[_Point]
    bowls: list[_Bowl]
    bounded: bool

    @classmethod
    def both(cls, f: Activation, low: Tensor, high: Tensor) -> "tuple[Side, Side]":
        """Return the sides below f and below -f, whose ends are evaluated once."""
        shape = (low <= high).shape
        values = [_value(f, z.expand(shape)) for z in (low, high)]
        return cls.of(f, low, high, 1, values), cls.of(f, low, high, -1, values)

    @classmethod
    @torch.no_grad()
    def of(
        cls, f: Activation, low: Tensor, high: Tensor, sign: int, values: Sequence[tuple[Tensor, Tensor]] | None = None
    ) -> "Side":
        """Evaluate f at the ends, unless values and their errors are given, and at the joints."""
        shape = (low <= high).shape
        low, high = low.expand(shape), high.expand(shape)
        values = [_value(f, z) for z in (low, high)] if values is None else values
        points = [_point(z, *found, sign) for z, found in zip((low, high), values, strict=True)]
        joints = f.joints_near(low)
        convex = [sign * bend == CONVEX for bend in f.bends]
        for i, joint in enumerate(joints):
            if not (convex[i] or convex[i + 1]):
                inside, found = (low < joint) & (joint < high), _point(joint, *_value(f, joint), sign)
                points.append(_Point(*(torch.where(inside, a, b) for a, b in zip(found, points[0], strict=True))))
        # Points beyond 1e100 are never touched: products with slopes stay finite.
        far = low.new_tensor(min(1e100, torch.finfo(low.dtype).max ** 0.5))
        edges, bowls = [-far, *joints, far], []
        for i in range(len(f.bends)):
            if convex[i]:
                first = low if i == 0 else torch.maximum(low, joints[i - 1])
                last = high if i == len(joints) else torch.minimum(high, joints[i])
                left, right = after(edges[i]), before(edges[i + 1])
                start, end = (torch.minimum(torch.maximum(z, left), right) for z in (first, last))
                bowls.append(_Bowl(i, first, last, start, end, sign * f.slope(start), sign * f.slope(end)))
        return cls(f, low, high, sign, points, bowls, not bool((low.isinf() | high.isinf()).any()))

    def offset(self, slope: Tensor) -> Tensor:
        """Return a lower bound of sign f(z) - slope z on the interval.

        It is minus infinity where the pieces do not cover the interval, and NaN where an end is.
        """
        low, high = self.low, self.high
        best = reduce(torch.minimum, [self._at(point, slope) for point in self.points])
        for bowl in self.bowls:
            best = torch.minimum(best, self._tangent(bowl, slope))
        good = self.f.covered(low, high) & self.f.defined(low, high) & (best < torch.inf)  # NaN is not good
        best = torch.where(good, best, -torch.inf)
        lag = self.f.excess(low, high) if self.sign == 1 else None
        if lag is not None:
            best = down(best - lag)
        return torch.where(low.isnan() | high.isnan() | slope.isnan(), torch.nan, best)

    def tightest(self, least: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        """Return slope and offset of the line with the largest integral; slopes of sign f lie in [least, largest]."""
        f, low, high = self.f, self.low, self.high
        middle = low / 2 + high / 2
        tangent = self.sober(_between(self.sign * f.slope(middle), least, largest))
        if len(f.bends) == 1 and self.bowls:
            return tangent, self.offset(tangent)
        chord = self.sober(self.chord(least, largest))
        if len(f.bends) == 1:
            return chord, self.offset(chord)
        (left, at_left, _), (right, at_right, _) = self.points[:2]
        for _ in range(STEPS if any(bend != LINEAR for bend in f.bends) else len(f.bends) - 1):
            z, value = self.lowest(chord)
            early = z <= middle
            left, at_left = torch.where(early, z, left), torch.where(early, value, at_left)
            right, at_right = torch.where(early, right, z), torch.where(early, at_right, value)
            chord = _between((at_right - at_left) / (right - left), least, largest, tangent)
        first, second = self.offset(chord), self.offset(tangent)
        better = tangent * middle + second > chord * middle + first
        return torch.where(better, tangent, chord), torch.where(better, second, first)

    def chord(self, least: Tensor, largest: Tensor) -> Tensor:
        """Return the slope of the chord over the interval, or of f in the middle where there is none."""
        (low, first, _), (high, last, _) = self.points[:2]
        middle = self.sign * self.f.slope(low / 2 + high / 2)
        return _between((last - first) / (high - low), least, largest, middle)

    def sober(self, slope: Tensor) -> Tensor:
        """Return 0 instead of slopes that are infinite or not covered by the pieces."""
        good = slope.isfinite() & self.f.covered(self.low, self.high)
        return torch.where(good | self.low.isnan() | self.high.isnan(), slope, 0.0)

    def _at(self, point: _Point, slope: Tensor) -> Tensor:
        """Return a lower bound of sign f(z) - slope z at a point; at an infinite one, whether it rises towards it."""
        z, value, error = point
        product = slope * z
        size = value.abs() + product.abs()
        found = value - product - (error + 8 * unit(z) * size + tiny(z))
        if self.bounded:
            return found
        # On a piece that bends down or not at all the slope's limit is its least towards the end. Tangents do the rest.
        rises = (self.sign * self.f.slope(z) - slope) * z.sign() >= 0
        return torch.where(z.isinf(), torch.where(rises, torch.inf, -torch.inf), found)

    def _touch(self, bowl: _Bowl, slope: Tensor) -> Tensor:
        """Return the point of a convex piece whose tangent is used: inside it, and if possible in the interval."""
        touch = self.f.touch(self.sign * slope, bowl.piece, self.low)
        touch = torch.minimum(torch.maximum(touch, bowl.start), bowl.end)
        touch = torch.where(slope >= bowl.steepest, bowl.end, touch)
        return torch.where(slope <= bowl.flattest, bowl.start, touch)

    def _tangent(self, bowl: _Bowl, slope: Tensor) -> Tensor:
        """Bound sign f(z) - slope z from below on a convex piece; infinite if it does not meet the interval."""
        touch = self._touch(bowl, slope)
        value, steep = self.f.value(touch), self.f.slope(touch)
        fall, error = self.sign * steep - slope, self.f.slope_error(touch, steep)
        product = slope * touch
        base = self.sign * value - product
        loss = self.f.error(touch, value) + 8 * unit(touch) * (value.abs() + product.abs()) + tiny(touch)
        heights = []
        for z, direction in ((bowl.first, -1), (bowl.last, 1)):
            run = z - touch
            change = fall * run
            height = base + change - (loss + error * run.abs() + 8 * unit(touch) * change.abs())
            if not self.bounded:
                level = torch.where(fall * direction >= error, base - loss, -torch.inf)
                height = torch.where(z.isinf(), level, height)
            heights.append(height)
        found = torch.minimum(*heights)
        return torch.where(bowl.first < bowl.last, found, torch.inf)

    def lowest(self, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Return about the lowest point of sign f(z) - slope z, and sign f there: for searching alone."""
        candidates = [point[:2] for point in self.points]
        for bowl in self.bowls:
            touch = self._touch(bowl, slope)
            met = bowl.first < bowl.last
            value = torch.where(met, self.sign * self.f.value(touch), self.points[0].value)
            candidates.append((torch.where(met, touch, self.low), value))
        best, best_value = candidates[0]
        least = best_value - slope * best
        for z, value in candidates[1:]:
            tilted = value - slope * z
            lower = tilted < least
            best, best_value = torch.where(lower, z, best), torch.where(lower, value, best_value)
            least = torch.minimum(least, tilted)
        return best, best_value


def _value(f: Activation, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return f(z), and a bound of its error."""
    value = f.value(z)
    return value, f.error(z, value)


def _point(z: Tensor, value: Tensor, error: Tensor, sign: int) -> _Point:
    """Return a point; a value of sign f that overflows is replaced by a large one."""
    value = sign * value
    above = (value == torch.inf) & z.isfinite()
    return _Point(z, torch.where(above, torch.finfo(z.dtype).max / 4, value), torch.where(above, 0.0, error))


def _between(slope: Tensor, least: Tensor, largest: Tensor, instead: Tensor | None = None) -> Tensor:
    """Return slopes within their bounds; `instead` where they are no numbers."""
    if instead is not None:
        slope = torch.where(slope.isfinite(), slope, instead)
    return torch.minimum(torch.maximum(slope, least), largest)


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
