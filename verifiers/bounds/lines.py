"""Lines below and above an activation on an interval, proved: one code for all functions; planes around products.

Offsets are rounded outward by a bound of all errors made on the way, those of the function's own evaluation included:
in float64 the line with the doubles returned holds in real arithmetic. In other precisions lines serve searches alone.

Where a function is not defined on all of an interval, its bounds and offsets are infinite. NaN ends give NaN. The lines
of a ReLU are those of `upper_line` and `lower_slope`, without outward rounding: the module `rounding` counts it.
"""

from functools import reduce
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from certbench.networks.activations import Activation
from certbench.networks.piecewise_linear import RELU
from certbench.numerics.rounding import TINY
from certbench.verifiers.bounds.supports import Side, after, before, down, tiny, unit, up


class Lines(NamedTuple):
    """A line below and a line above a function, by interval; no lower offset: it is 0 everywhere."""

    lower_slope: Tensor
    lower_offset: Tensor | None
    upper_slope: Tensor
    upper_offset: Tensor


class Planes(NamedTuple):
    """Planes below and above a product: coefficients of both factors, and offsets."""

    lower_x: Tensor
    lower_y: Tensor
    lower_offset: Tensor
    upper_x: Tensor
    upper_y: Tensor
    upper_offset: Tensor


@torch.no_grad()
def enclose(f: Activation, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return bounds of f on [low, high]: infinite where it is undefined, NaN where an end is NaN."""
    unknown = low.isnan() | high.isnan()
    if f == RELU:
        return torch.where(unknown, torch.nan, low.clamp(min=0)), torch.where(unknown, torch.nan, high.clamp(min=0))
    ends = [low, high, *(torch.minimum(torch.maximum(low, point), high) for point in f.turning_near(low))]
    least, largest = torch.full_like(low, torch.inf), torch.full_like(low, -torch.inf)
    for z in ends:
        value = f.value(z)
        error = torch.where(value.isinf(), 0.0, f.error(z, value))
        least, largest = torch.minimum(least, down(value - error)), torch.maximum(largest, up(value + error))
    lag = f.excess(low, high)
    if lag is not None:
        least = down(least - lag)
    # A value that overflows is infinite, but as a lower bound only very large.
    limit = torch.finfo(low.dtype).max / 2
    least, largest = least.clamp(max=limit), largest.clamp(min=-limit)
    bottom, top = f.limits
    inside = f.covered(low, high) & ~least.isnan() & ~largest.isnan()
    least = torch.where(inside, least.clamp(min=bottom if lag is None else -torch.inf), bottom)
    largest = torch.where(inside, largest.clamp(max=top), top)
    defined = f.defined(low, high)
    least, largest = torch.where(defined, least, -torch.inf), torch.where(defined, largest, torch.inf)
    return torch.where(unknown, torch.nan, least), torch.where(unknown, torch.nan, largest)


def below(f: Activation, low: Tensor, high: Tensor, slope: Tensor) -> Tensor:
    """Return offsets of lines of the given slopes below f on [low, high]; differentiable in `slope`.

    All arguments broadcast. The derivative is that of the minimum where it is attained (Danskin's theorem).
    """
    return offset_below(Side.of(f, low, high, 1), slope)


def above(f: Activation, low: Tensor, high: Tensor, slope: Tensor) -> Tensor:
    """Return offsets of lines of the given slopes above f on [low, high], as `below`."""
    return -offset_below(Side.of(f, low, high, -1), -slope)


def offset_below(side: Side, slope: Tensor) -> Tensor:
    """Return the offset of the line below one side of a function; its derivative is minus the point of touch."""
    with torch.no_grad():
        fixed = slope.detach()
        offset = _offset(side, fixed)
        if not slope.requires_grad:
            return offset
        point = side.lowest(fixed)[0].nan_to_num(0.0, 0.0, 0.0)
    return offset + (fixed - slope) * point


def _offset(side: Side, slope: Tensor) -> Tensor:
    """Return the offset of the line below one side, from the range of the function where its pieces give none."""
    f, low, high, sign = side.f, side.low, side.high, side.sign
    offset = side.offset(slope)
    lost = offset == -torch.inf
    if bool(lost.any()):  # bound f alone
        level = _level(f, low, high, sign)
        most = torch.where(slope == 0, 0.0, torch.maximum(slope * low, slope * high))
        rest = down(level - most - 8 * unit(level) * (level.abs() + most.abs()))
        offset = torch.where(lost & ~rest.isnan(), rest, offset)
    return _relu(low, high, slope, sign, offset) if f == RELU else offset


def _level(f: Activation, low: Tensor, high: Tensor, sign: int) -> Tensor:
    """Return a lower bound of sign f."""
    ends = enclose(f, low, high)
    return ends[0] if sign == 1 else -ends[1]


def _relu(low: Tensor, high: Tensor, slope: Tensor, sign: int, offset: Tensor) -> Tensor:
    """Replace a ReLU's offsets by those that the engine has for ReLU networks."""
    if sign == 1:
        touches = torch.where((low < 0) & (high > 0), (slope >= 0) & (slope <= 1), slope == (low >= 0).to(slope.dtype))
        return torch.where(touches, 0.0, offset)
    line, exact = upper_line(low, high)
    return torch.where(slope == -line, -exact, offset)


@torch.no_grad()
def slopes(f: Activation, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return bounds of the slopes of all chords of f on [low, high], which are its derivatives' where it has some.

    They are infinite where f is undefined, NaN where an end is NaN.
    """
    least, largest = torch.full_like(low, torch.inf), torch.full_like(low, -torch.inf)
    joints = f.joints_near(low)
    edges: list[Tensor | None] = [None, *joints, None]
    for left, right in pairwise(edges):
        # The slope is monotone on a piece; at a kink it is taken just inside.
        first = low if left is None else torch.maximum(low, after(left).expand_as(low))
        last = high if right is None else torch.minimum(high, before(right).expand_as(high))
        meets = torch.ones_like(low, dtype=torch.bool) if left is None else high > left
        meets = meets if right is None else meets & (low < right)
        for z in (first, last):
            slope = f.slope(z)
            error = torch.where(slope.isinf(), 0.0, f.slope_error(z, slope))
            least = torch.where(meets, torch.minimum(least, slope - error), least)
            largest = torch.where(meets, torch.maximum(largest, slope + error), largest)
    empty = least > largest  # a single point, at a joint
    slope = f.slope(low)
    least, largest = torch.where(empty, slope, least), torch.where(empty, slope, largest)
    whole = f.covered(low, high) & f.defined(low, high) & ~least.isnan() & ~largest.isnan()
    least, largest = torch.where(whole, least, -torch.inf), torch.where(whole, largest, torch.inf)
    unknown = low.isnan() | high.isnan()
    return torch.where(unknown, torch.nan, least), torch.where(unknown, torch.nan, largest)


@torch.no_grad()
def tightest(f: Activation, low: Tensor, high: Tensor) -> Lines:
    """Return the lines with the largest integral below f and the least one above it, on [low, high].

    The line below supports f's convex envelope at the middle m of the interval. It is the tangent at m, or it touches
    f left and right of m. Those two points are found by moving them to where f lies farthest below their chord.
    """
    if f == RELU:
        line = lower_slope(low, high, None)
        return Lines(line, torch.zeros_like(line), *upper_line(low, high))
    sides = Side.both(f, low, high)
    supporting = [f.supporting(low, high, side.sign) for side in sides]
    if all(slope is not None for slope in supporting):
        sober = [side.sober(slope) for side, slope in zip(sides, supporting, strict=True) if slope is not None]
        lower, upper = ((slope, side.offset(slope)) for side, slope in zip(sides, sober, strict=True))
    else:
        least, largest = slopes(f, low, high)
        lower, upper = sides[0].tightest(least, largest), sides[1].tightest(-largest, -least)
    return _lines(f, low, high, (*lower, lower[1].isinf()), (*upper, upper[1].isinf()))


@torch.no_grad()
def parallel(f: Activation, low: Tensor, high: Tensor) -> Lines:
    """Return two lines with the slope of the chord over [low, high], as Fast-Lin does for ReLU."""
    if f == RELU:
        slope, offset = upper_line(low, high)
        return Lines(slope, torch.zeros_like(slope), slope, offset)
    lower, upper = Side.both(f, low, high)
    slope = lower.sober(lower.chord(*slopes(f, low, high)))
    below, above = lower.offset(slope), upper.offset(-slope)
    lost = below.isinf() | above.isinf()
    return _lines(f, low, high, (slope, below, lost), (-slope, above, lost))


Found = tuple[Tensor, Tensor, Tensor]
"""Slopes and offsets of lines below f or -f, and where none was found."""


def _lines(f: Activation, low: Tensor, high: Tensor, lower: Found, upper: Found) -> Lines:
    """Return lines; horizontal ones where none was found."""
    if bool((lower[2] | upper[2]).any()):
        least, largest = enclose(f, low, high)
        lower, upper = (
            (torch.where(lost, 0.0, slope), torch.where(lost, level, offset), lost)
            for (slope, offset, lost), level in ((lower, least), (upper, -largest))
        )
    return Lines(lower[0], lower[1], -upper[0], -upper[1])


def product(
    low_x: Tensor,
    high_x: Tensor,
    low_y: Tensor,
    high_y: Tensor,
    lower: float | Tensor = 0.5,
    upper: float | Tensor = 0.5,
) -> Planes:
    """Return planes below and above x y on a box, each a mixture of McCormick's two (1976).

    Args:
        low_x: lower bounds of x.
        high_x: upper bounds of x.
        low_y: lower bounds of y.
        high_y: upper bounds of y.
        lower: weight in [0, 1] of the plane that touches at (low_x, low_y), below; the rest is the opposite one's.
        upper: weight in [0, 1] of the plane that touches at (high_x, low_y), above.

    The offset of any plane is the least value of x y - a x - b y at the four corners, as that is bilinear. It is
    rounded outward, and differentiable in the weights. Infinite ends give infinite offsets.
    """
    a, b = low_y * lower + high_y * (1 - lower), low_x * lower + high_x * (1 - lower)
    c, d = low_y * upper + high_y * (1 - upper), high_x * upper + low_x * (1 - upper)
    corners = [(x, y) for x in (low_x, high_x) for y in (low_y, high_y)]
    bottom = reduce(torch.minimum, (_corner(x, y, a, b, 1) for x, y in corners))
    top = reduce(torch.minimum, (_corner(x, y, c, d, -1) for x, y in corners))
    return Planes(a, b, bottom, c, d, -top)


def _corner(x: Tensor, y: Tensor, a: Tensor, b: Tensor, sign: int) -> Tensor:
    """Return a lower bound of sign (x y - a x - b y)."""
    terms = (x * y, a * x, b * y)
    size = terms[0].abs() + terms[1].abs() + terms[2].abs()
    found = sign * (terms[0] - terms[1] - terms[2]) - (8 * unit(x) * size + tiny(x))
    unknown = x.isnan() | y.isnan()
    return torch.where(found.isnan() & ~unknown, -torch.inf, found)


def upper_line(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return slope and offset of the line above a ReLU on [low, high]; NaN bounds give NaN.

    Where the width overflows it is z - low. Slopes that would underflow are raised, so that the line stays above.
    """
    unstable, width = (low < 0) & (high > 0), high - low
    chord = torch.where(width.isinf(), 1.0, (high / width).clamp(min=TINY))
    slope = torch.where(unstable, chord, (low >= 0).to(low.dtype))
    slope = torch.where(low.isnan() | high.isnan(), torch.nan, slope)
    return slope, torch.where(unstable, -low * slope, 0.0)


def lower_slope(low: Tensor, high: Tensor, chosen: Tensor | None) -> Tensor:
    """Return the slope of the line below a ReLU on [low, high]: 0 or 1 where the sign is known, else as chosen."""
    free = (high > -low).to(low.dtype) if chosen is None else chosen.clamp(0, 1)
    return torch.where((low < 0) & (high > 0), free, (low >= 0).to(low.dtype))
