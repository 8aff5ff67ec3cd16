"""Lines below and above an activation on an interval, proved: one code for all functions; planes around products.

Offsets are rounded outward by a bound of all errors made on the way, those of the function's own evaluation included:
in float64 the line with the doubles returned holds in real arithmetic. In other precisions lines serve searches alone.

Where a function is not defined on all of an interval, its bounds and offsets are infinite. NaN ends give NaN. The lines
of a ReLU are those of `upper_line` and `lower_slope`, without outward rounding: the module `rounding` counts it.
"""

from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.networks.activations import Activation
from certbench.networks.piecewise_linear import RELU
from certbench.numerics.rounding import TINY
from certbench.verifiers.bounds.supports import Sides, after, before, beside, down, finite, plain, tiny, unit, up


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
    turning = beside(f.turning_near(low), low).clamp(low, high)
    z = torch.cat([low[None], high[None], turning.expand(-1, *low.shape)])
    value = f.value(z)
    error = f.error(z, value)
    if not finite(value):
        error = torch.where(value.isinf(), 0.0, error)
    least, largest = down((value - error).amin(dim=0)), up((value + error).amax(dim=0))
    lag = f.excess(low, high)
    if lag is not None:
        least = down(least - lag)
    # A value that overflows is infinite, but as a lower bound only very large.
    limit = torch.finfo(low.dtype).max / 2
    bottom, top = f.limits
    inside = least, largest = (
        least.clamp(bottom if lag is None else -torch.inf, limit),
        largest.clamp(-limit, top),
    )
    if plain(f, low, high) and finite(*inside):
        return inside
    covered = f.covered(low, high) & ~least.isnan() & ~largest.isnan()
    least, largest = torch.where(covered, least, bottom), torch.where(covered, largest, top)
    defined = f.defined(low, high)
    least, largest = torch.where(defined, least, -torch.inf), torch.where(defined, largest, torch.inf)
    return torch.where(unknown, torch.nan, least), torch.where(unknown, torch.nan, largest)


def below(f: Activation, low: Tensor, high: Tensor, slope: Tensor) -> Tensor:
    """Return offsets of lines of the given slopes below f on [low, high]; differentiable in `slope`.

    All arguments broadcast. The derivative is that of the minimum where it is attained (Danskin's theorem).
    """
    return offsets(Sides.of(f, low, high), torch.stack([slope, -slope]))[0]


def above(f: Activation, low: Tensor, high: Tensor, slope: Tensor) -> Tensor:
    """Return offsets of lines of the given slopes above f on [low, high], as `below`."""
    return -offsets(Sides.of(f, low, high), torch.stack([slope, -slope]))[1]


def offsets(sides: Sides, slope: Float[Tensor, "2 ..."]) -> Float[Tensor, "2 ..."]:
    """Return the offsets of lines below f and -f; their derivatives are minus the points of touch."""
    with torch.no_grad():
        fixed = slope.detach()
        offset = _offsets(sides, fixed)
        if not slope.requires_grad:
            return offset
        point = sides.lowest(fixed)[0].nan_to_num(0.0, 0.0, 0.0)
    return offset + (fixed - slope) * point


def _offsets(sides: Sides, slope: Tensor) -> Tensor:
    """Return the offsets of lines below f and -f, from the range of the function where its pieces give none."""
    f, low, high = sides.f, sides.low, sides.high
    offset = sides.offset(slope)
    if not finite(offset):  # bound f alone
        least, largest = enclose(f, low, high)
        level = torch.stack([least, -largest])
        most = torch.where(slope == 0, 0.0, torch.maximum(slope * low, slope * high))
        rest = down(level - most - 8 * unit(level) * (level.abs() + most.abs()))
        offset = torch.where((offset == -torch.inf) & ~rest.isnan(), rest, offset)
    return _relu(low, high, slope, offset) if f == RELU else offset


def _relu(low: Tensor, high: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """Replace a ReLU's offsets by those that the engine has for ReLU networks."""
    below, above = slope
    touches = torch.where((low < 0) & (high > 0), (below >= 0) & (below <= 1), below == (low >= 0).to(slope.dtype))
    line, exact = upper_line(low, high)
    return torch.stack([torch.where(touches, 0.0, offset[0]), torch.where(above == -line, -exact, offset[1])])


@torch.no_grad()
def slopes(f: Activation, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return bounds of the slopes of all chords of f on [low, high], which are its derivatives' where it has some.

    They are infinite where f is undefined, NaN where an end is NaN.
    """
    joints = beside(f.joints_near(low), low)
    # The slope is monotone on a piece; at a kink it is taken just inside.
    first = torch.cat([low[None], torch.maximum(low, after(joints))])
    last = torch.cat([torch.minimum(high, before(joints)), high[None]])
    every = torch.ones_like(low[None], dtype=torch.bool)
    meets = torch.cat([every, high > joints]) & torch.cat([low < joints, every])
    z = torch.stack([first, last])
    slope = f.slope(z)
    error = f.slope_error(z, slope)
    if not finite(slope):
        error = torch.where(slope.isinf(), 0.0, error)
    least = torch.where(meets, slope - error, torch.inf).amin(dim=(0, 1))
    largest = torch.where(meets, slope + error, -torch.inf).amax(dim=(0, 1))
    empty = least > largest  # a single point, at a joint
    if bool(empty.any()):
        slope = f.slope(low)
        least, largest = torch.where(empty, slope, least), torch.where(empty, slope, largest)
    if plain(f, low, high) and finite(least, largest):
        return least, largest
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
    sides, supporting = Sides.of(f, low, high), f.supporting(low, high)
    if supporting is None:
        slope, offset = sides.tightest(*slopes(f, low, high))
    else:
        slope = sides.sober(supporting)
        offset = sides.offset(slope)
    return _lines(f, low, high, slope, offset)


@torch.no_grad()
def parallel(f: Activation, low: Tensor, high: Tensor) -> Lines:
    """Return two lines with the slope of the chord over [low, high], as Fast-Lin does for ReLU."""
    if f == RELU:
        slope, offset = upper_line(low, high)
        return Lines(slope, torch.zeros_like(slope), slope, offset)
    sides = Sides.of(f, low, high)
    slope = sides.chord(*slopes(f, low, high))
    offset = sides.offset(slope)
    return _lines(f, low, high, slope, offset, together=True)


def _lines(
    f: Activation,
    low: Tensor,
    high: Tensor,
    slope: Float[Tensor, "2 ..."],
    offset: Float[Tensor, "2 ..."],
    together: bool = False,
) -> Lines:
    """Return lines, given those below f and -f; horizontal ones where none was found, or not both (`together`)."""
    if not finite(offset):
        lost = offset.isinf().any(dim=0) if together else offset.isinf()
        least, largest = enclose(f, low, high)
        slope = torch.where(lost, 0.0, slope)
        offset = torch.where(lost, torch.stack([least, -largest]), offset)
    return Lines(slope[0], offset[0], -slope[1], -offset[1])


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
    x, y = torch.stack([low_x, low_x, high_x, high_x]), torch.stack([low_y, high_y, low_y, high_y])
    corners = x * y
    wide, tall = (torch.maximum(low.abs(), high.abs()) for low, high in ((low_x, high_x), (low_y, high_y)))
    bottom = reduce(torch.minimum, _tilted(corners, x, y, a, b)) - _loss(wide, tall, a, b)
    top = reduce(torch.maximum, _tilted(corners, x, y, c, d)) + _loss(wide, tall, c, d)
    if not finite(bottom, top):
        known = ~(x.isnan() | y.isnan()).any(dim=0)
        bottom, top = bottom.where(~(bottom.isnan() & known), -torch.inf), top.where(~(top.isnan() & known), torch.inf)
    return Planes(a, b, bottom, c, d, top)


def _tilted(product: Tensor, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return x y - a x - b y."""
    return torch.addcmul(torch.addcmul(product, a, x, value=-1), b, y, value=-1)


def _loss(wide: Tensor, tall: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Bound the error of x y - a x - b y for |x| <= wide and |y| <= tall."""
    return 8 * unit(wide) * (wide * tall + a.abs() * wide + b.abs() * tall) + tiny(wide)


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
