r"""Lines that support an activation from below, by convex and concave pieces, with all rounding errors counted.

A line $s z + b$ lies below f on [l, u] if $b \leq \min_z f(z) - s z$. On a concave or linear piece of f that minimum is
at an end of the piece. On a convex piece the tangent at any point t lies below f, so that
$f(t) - s t + (f'(t) - s) (z - t)$, at an end of the piece, bounds it; the bound is tight if $f'(t) = s$. Lines above f
are lines below -f.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from certbench.networks.activations import CONVEX, LINEAR, Activation

STEPS = 8
"""Number of steps towards the tightest line. They converge as Newton's; a correct line needs none."""


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
        points: the ends and the joints between them (elsewhere an end again).
        bowls: its convex pieces.
    """

    f: Activation
    low: Tensor
    high: Tensor
    sign: int
    points: list[_Point]
    bowls: list[_Bowl]

    @classmethod
    def of(cls, f: Activation, low: Tensor, high: Tensor, sign: int) -> "Side":
        """Evaluate f at the ends and joints."""
        shape = (low <= high).shape
        low, high = low.expand(shape), high.expand(shape)
        points = [_point(f, z, sign) for z in (low, high)]
        joints = f.joints_near(low)
        for joint in joints:
            inside, found = (low < joint) & (joint < high), _point(f, joint, sign)
            points.append(_Point(*(torch.where(inside, a, b) for a, b in zip(found, points[0], strict=True))))
        # Points beyond 1e100 are never touched: products with slopes stay finite.
        far = low.new_tensor(min(1e100, torch.finfo(low.dtype).max ** 0.5))
        edges, bowls = [-far, *joints, far], []
        for i, bend in enumerate(f.bends):
            if sign * bend == CONVEX:
                first = low if i == 0 else torch.maximum(low, joints[i - 1])
                last = high if i == len(joints) else torch.minimum(high, joints[i])
                left, right = up(edges[i]), down(edges[i + 1])
                start, end = (torch.minimum(torch.maximum(z, left), right) for z in (first, last))
                bowls.append(_Bowl(i, first, last, start, end, sign * f.slope(start), sign * f.slope(end)))
        return cls(f, low, high, sign, points, bowls)

    def offset(self, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Return a lower bound of sign f(z) - slope z on the interval, and about where it is attained.

        It is minus infinity where the pieces do not cover the interval, and NaN where an end is.
        """
        low, high = self.low, self.high
        best, at = self._at_ends(slope)
        for point in self.points[2:]:
            best, at = _least(best, at, _rounded(point, slope), point.z)
        for bowl in self.bowls:
            touch = self._touch(bowl, slope)
            best, at = _least(best, at, self._tangent(touch, slope, bowl.first, bowl.last), touch)
        unknown = low.isnan() | high.isnan() | slope.isnan()
        good = self.f.covered(low, high) & self.f.defined(low, high) & ~best.isnan() & (best < torch.inf)
        best = torch.where(good, best, -torch.inf)
        lag = self.f.excess(low, high) if self.sign == 1 else None
        if lag is not None:
            best = down(best - lag)
        return torch.where(unknown, torch.nan, best), torch.where(at.isfinite(), at, 0.0)

    def tightest(self, least: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        """Return slope and offset of the line with the largest integral; slopes of sign f lie in [least, largest]."""
        f, low, high = self.f, self.low, self.high
        middle = low / 2 + high / 2
        tangent = self.sober(_between(self.sign * f.slope(middle), least, largest))
        if len(f.bends) == 1 and self.bowls:
            return tangent, self.offset(tangent)[0]
        chord = self.sober(self.chord(least, largest))
        if len(f.bends) == 1:
            return chord, self.offset(chord)[0]
        (left, at_left, _), (right, at_right, _) = self.points[:2]
        for _ in range(STEPS if any(bend != LINEAR for bend in f.bends) else len(f.bends) - 1):
            z, value = self._lowest(chord)
            before = z <= middle
            left, at_left = torch.where(before, z, left), torch.where(before, value, at_left)
            right, at_right = torch.where(before, right, z), torch.where(before, at_right, value)
            chord = _between((at_right - at_left) / (right - left), least, largest, tangent)
        first, second = self.offset(chord)[0], self.offset(tangent)[0]
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

    def _at_ends(self, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Return the lesser value of sign f(z) - slope z at the ends, and which end."""
        values = [_rounded(point, slope) for point in self.points[:2]]
        for i, direction in enumerate((-1, 1)):
            z = self.points[i].z
            infinite = z == direction * torch.inf
            if bool(infinite.any()):
                # On a piece that bends down or not at all the slope's limit is its least towards the end.
                rises = (self.sign * self.f.slope(z) - slope) * direction >= 0
                values[i] = torch.where(infinite, torch.where(rises, torch.inf, -torch.inf), values[i])
        return _least(values[0], self.points[0].z.expand_as(values[0]), values[1], self.points[1].z)

    def _touch(self, bowl: _Bowl, slope: Tensor) -> Tensor:
        """Return the point of a convex piece whose tangent is used: inside it, and if possible in the interval."""
        touch = self.f.touch(self.sign * slope, bowl.piece, self.low)
        touch = torch.where(touch.isnan(), bowl.start / 2 + bowl.end / 2, touch)
        touch = torch.minimum(torch.maximum(touch, bowl.start), bowl.end)
        touch = torch.where(slope >= bowl.steepest, bowl.end, touch)
        return torch.where(slope <= bowl.flattest, bowl.start, touch)

    def _tangent(self, touch: Tensor, slope: Tensor, first: Tensor, last: Tensor) -> Tensor:
        """Bound sign f(z) - slope z from below on [first, last], a part of a convex piece, by a tangent."""
        value, steep = self.f.value(touch), self.f.slope(touch)
        fall, error = self.sign * steep - slope, self.f.slope_error(touch, steep)
        base = self.sign * value - slope * touch
        loss = self.f.error(touch, value) + 8 * unit(touch) * (value.abs() + (slope * touch).abs()) + tiny(touch)
        found = torch.full_like(base, torch.inf)
        for z, direction in ((first, -1), (last, 1)):
            run = z - touch
            change = fall * run
            height = base + change - (loss + error * run.abs() + 8 * unit(touch) * change.abs())
            level = torch.where(fall * direction >= error, base - loss, -torch.inf)
            found = torch.minimum(found, torch.where(z.isinf(), level, height))
        found = torch.where(found.isnan(), -torch.inf, found)
        return torch.where(first < last, found, torch.inf)

    def _lowest(self, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Return about the lowest point of sign f(z) - slope z, and sign f there: for searching alone."""
        candidates = [point[:2] for point in self.points]
        for bowl in self.bowls:
            touch = self._touch(bowl, slope)
            met = bowl.first < bowl.last
            value = torch.where(met, self.sign * self.f.value(touch), self.points[0].value)
            candidates.append((torch.where(met, touch, self.low), value))
        best, best_value = candidates[0]
        for z, value in candidates[1:]:
            lower = value - slope * z < best_value - slope * best
            best, best_value = torch.where(lower, z, best), torch.where(lower, value, best_value)
        return best, best_value


def _point(f: Activation, z: Tensor, sign: int) -> _Point:
    value = f.value(z)
    return _Point(z, sign * value, f.error(z, value))


def _rounded(point: _Point, slope: Tensor) -> Tensor:
    """Return a lower bound of value - slope z; a value that overflows is as large as can be."""
    z, value, error = point
    size = value.abs() + (slope * z).abs()
    found = value - slope * z - (error + 8 * unit(z) * size + tiny(z))
    return torch.where((value == torch.inf) & z.isfinite(), torch.finfo(z.dtype).max / 4 - slope * z, found)


def _least(best: Tensor, at: Tensor, value: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lesser of two bounds, NaN if one is, and its point."""
    return torch.minimum(best, value), torch.where(value < best, z, at)


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


def unit(z: Tensor) -> float:
    """Return the relative error of one rounding in z's precision."""
    return float(torch.finfo(z.dtype).eps) / 2


def tiny(z: Tensor) -> float:
    """Return more than underflow can take from a few operations in z's precision."""
    return float(torch.finfo(z.dtype).tiny) * 16
