"""Lines around the activations of a network: which ones are taken, for ReLUs, other functions and products."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from certbench.networks.activations import Activation
from certbench.networks.layers import Bilinear, RowSoftmax
from certbench.networks.piecewise_linear import IDENTITY, RELU, PiecewiseLinear
from certbench.verifiers.bounds import lines, softmax
from certbench.verifiers.bounds.lines import Lines, lower_slope, upper_line
from certbench.verifiers.bounds.supports import Sides, down, finite, up

Function = Activation | Bilinear | RowSoftmax
"""What follows a layer: a function of each entry, the product of the two halves, or the softmax of each row."""


def around(
    function: Function, low: Float[Tensor, "n 1 size"], high: Float[Tensor, "n 1 size"], parallel: bool = False
) -> Lines:
    """Return CROWN's lines below and above an activation on [low, high]; NaN bounds give NaN.

    For a ReLU the line below has slope 1 where u > -l, else 0 (Zhang et al., 2018). For other functions either line has
    the greatest integral over the interval. A product lies between two of McCormick's planes (`_mixes`).

    Args:
        function: the activation.
        low: lower bounds of its input.
        high: upper bounds.
        parallel: whether both lines have the same slope (Weng et al., 2018; Wong and Kolter, 2018).
    """
    if function == RELU:
        above, offset = upper_line(low, high)
        return Lines(above if parallel else lower_slope(low, high, None), None, above, offset)
    if isinstance(function, Bilinear):
        return product(low, high, _mixes(low, high))
    if isinstance(function, RowSoftmax):
        return rows(function, low, high)
    return _level(lines.parallel(function, low, high) if parallel else lines.tightest(function, low, high))


def picked(found: Lines, index: Tensor | slice) -> Lines:
    """Select the lines of some of the inputs."""
    lower = None if found.lower_offset is None else found.lower_offset[index]
    return Lines(found.lower_slope[index], lower, found.upper_slope[index], found.upper_offset[index])


@dataclass(frozen=True, eq=False)
class Family:
    """All lines around an activation on [low, high] that numbers choose.

    Attributes:
        function: the activation.
        low: lower bounds of its input.
        high: upper bounds.
        slopes: its least and its largest slopes; None for ReLUs and products.
        sides: the function and its negative, likewise.
    """

    function: Function
    low: Float[Tensor, "n 1 size"]
    high: Float[Tensor, "n 1 size"]
    slopes: tuple[Tensor, Tensor] | None = None
    sides: Sides | None = None

    @staticmethod
    def of(function: Function, low: Float[Tensor, "n size"], high: Float[Tensor, "n size"]) -> "Family":
        """Find what all lines share."""
        low, high = low[:, None], high[:, None]
        if function == RELU or isinstance(function, Bilinear | RowSoftmax):
            return Family(function, low, high)
        return Family(function, low, high, lines.slopes(function, low, high), Sides.of(function, low, high))

    def chosen(self, choice: Float[Tensor, "n k _"]) -> Lines:
        """Return lines chosen by numbers that are clamped into [0, 1]; any choice is sound, and NaN bounds give NaN.

        For a ReLU there is one number for each entry, the slope of the line below. For other functions there are two
        halves, for the lines below and above: the slope, from the function's least on the interval, 0, to its largest,
        1. For a product they mix McCormick's planes.
        """
        if isinstance(self.function, Bilinear):
            return product(self.low, self.high, choice.clamp(0, 1))
        if isinstance(self.function, RowSoftmax):
            return rows(self.function, self.low, self.high, choice.clamp(0, 1))
        if self.slopes is None or self.sides is None:
            above, offset = upper_line(self.low, self.high)
            return Lines(lower_slope(self.low, self.high, choice), None, above, offset)
        least, largest = self.slopes
        slope = torch.stack([least + part * (largest - least) for part in choice.clamp(0, 1).chunk(2, dim=-1)])
        below, above = torch.where(slope.isfinite(), slope, 0.0)
        offset = lines.offsets(self.sides, torch.stack([below, -above]))
        return _level(Lines(below, offset[0], above, -offset[1]))


def chosen(
    function: Function, low: Float[Tensor, "n size"], high: Float[Tensor, "n size"], choice: Float[Tensor, "n k _"]
) -> Lines:
    """Return the lines that numbers choose, see `Family.chosen`."""
    return Family.of(function, low, high).chosen(choice)


def numbers(function: Function, low: Float[Tensor, "n size"], high: Float[Tensor, "n size"]) -> Float[Tensor, "n _"]:
    """Return the numbers by which `chosen` takes the lines of `around`, as nearly as rounding allows."""
    if function == RELU:
        return lower_slope(low, high, None)
    if isinstance(function, Bilinear):
        return _mixes(low, high)
    if isinstance(function, RowSoftmax):
        return torch.full_like(torch.cat([low, low], dim=-1), 0.5)
    found, (least, largest) = lines.tightest(function, low, high), lines.slopes(function, low, high)
    width = (largest - least).clamp(min=1e-300)
    return torch.cat([(slope - least) / width for slope in (found.lower_slope, found.upper_slope)], dim=-1).clamp(0, 1)


def _mixes(low: Tensor, high: Tensor) -> Tensor:
    """Return the numbers that choose CROWN's planes below and above a product of McCormick's, side by side.

    Both planes have the end of one factor that is next to 0 as the slope of the other factor. That factor is the first,
    unless the sign of the second alone is known. On attention networks this was 3 % tighter than the
    means of McCormick's planes, and the farther end 3 % looser.
    """
    (first, second), (beyond, above) = low.chunk(2, dim=-1), high.chunk(2, dim=-1)
    known = [(start >= 0) | (end <= 0) for start, end in ((first, beyond), (second, above))]
    turned = known[1] & ~known[0]
    lower = torch.where(turned, second + above >= 0, first + beyond >= 0).to(low)
    return torch.cat([lower, torch.where(turned, lower, 1 - lower)], dim=-1)


def product(low: Tensor, high: Tensor, mix: Tensor) -> Lines:
    """Return planes below and above the product of two halves, mixed of McCormick's, by one number for each side.

    The slopes of both factors stand side by side, one half behind the other.
    """
    (first, second), (beyond, above) = low.chunk(2, dim=-1), high.chunk(2, dim=-1)
    found = lines.product(first, beyond, second, above, *mix.chunk(2, dim=-1))
    below, over = (torch.cat(part, dim=-1) for part in ((found.lower_x, found.lower_y), (found.upper_x, found.upper_y)))
    return _level(Lines(below, found.lower_offset, over, found.upper_offset))


def rows(function: RowSoftmax, low: Tensor, high: Tensor, choice: Tensor | None = None) -> Lines:
    """Return planes below and above each entry of a softmax; slopes have the shape (n, k, rows, row, row)."""
    first, last = function.rows(low), function.rows(high)
    below, above = (None, None) if choice is None else (function.rows(part) for part in choice.chunk(2, dim=-1))
    found = softmax.planes(first, last, below, above)
    return Lines(found.lower_slope, found.lower_offset.flatten(-2), found.upper_slope, found.upper_offset.flatten(-2))


def image(
    function: Function, low: Float[Tensor, "n size"], high: Float[Tensor, "n size"]
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
    """Return bounds of an activation's outputs; NaN bounds give NaN."""
    if function == IDENTITY:
        return low, high
    if function == RELU:
        below, above = low.clamp(min=0), high.clamp(min=0)
        unknown = low.isnan()
        return torch.where(unknown, torch.nan, below), torch.where(unknown, torch.nan, above)
    if isinstance(function, Bilinear):
        (a, b), (c, d) = low.chunk(2, dim=-1), high.chunk(2, dim=-1)
        x, y = torch.stack([a, a, c, c]), torch.stack([b, d, b, d])
        corners = x * y
        if not finite(corners):  # 0 times infinity is 0
            corners = torch.where((x == 0) | (y == 0), 0.0, corners)
            corners = torch.where(x.isnan() | y.isnan(), torch.nan, corners)
        return down(corners.amin(dim=0)), up(corners.amax(dim=0))
    if isinstance(function, RowSoftmax):
        ends = softmax.enclose(function.rows(low), function.rows(high))
        return ends[0].flatten(-2), ends[1].flatten(-2)
    return lines.enclose(function, low, high)


def _level(found: Lines) -> Lines:
    """Make lines with an infinite offset or slope constant, and infinite: other slopes would make NaN of them."""
    assert found.lower_offset is not None
    if finite(found.lower_slope, found.lower_offset, found.upper_slope, found.upper_offset):
        return found
    parts: list[Tensor] = []
    for slope, offset, end in (
        (found.lower_slope, found.lower_offset, -torch.inf),
        (found.upper_slope, found.upper_offset, torch.inf),
    ):
        copies = slope.shape[-1] // offset.shape[-1]
        lost = torch.stack(slope.isinf().chunk(copies, dim=-1)).any(dim=0) | offset.isinf()
        if bool(lost.any()):
            lost = lost & ~offset.isnan()
            offset, slope = torch.where(lost, end, offset), torch.where(torch.cat([lost] * copies, dim=-1), 0.0, slope)
        parts += [slope, offset]
    return Lines(*parts)


def undecided(
    function: Function, low: Float[Tensor, "n size"], high: Float[Tensor, "n size"]
) -> Bool[Tensor, "n size"]:
    """Say which inputs of an activation need sharper bounds: those on which it is not known to be linear."""
    if function == IDENTITY:
        return torch.zeros_like(low, dtype=torch.bool)
    if function == RELU:
        return (low < 0) & (high > 0)
    if isinstance(function, PiecewiseLinear):
        if len(function.knots) == 0:
            return torch.zeros_like(low, dtype=torch.bool)
        return torch.stack([(low < knot) & (high > knot) for knot in function.knots.to(low)]).any(dim=0)
    return high > low
