"""Lines around the activations of a network: which ones are taken, for ReLUs, other functions and products."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from certbench.networks.activations import Activation
from certbench.networks.layers import Bilinear
from certbench.networks.piecewise_linear import IDENTITY, RELU, PiecewiseLinear
from certbench.verifiers.bounds import lines
from certbench.verifiers.bounds.lines import Lines

Function = Activation | Bilinear
"""What follows a layer: a function of each entry, or the product of the two halves."""


def around(
    function: Function, low: Float[Tensor, "n size"], high: Float[Tensor, "n size"], parallel: bool = False
) -> Lines:
    """Return CROWN's lines below and above an activation on [low, high]; NaN bounds give NaN.

    For a ReLU the line below has slope 1 where u > -l, else 0 (Zhang et al., 2018). For other functions either line has
    the greatest integral over the interval. A product lies between the means of McCormick's planes.

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
        return product(low, high, None)
    return lines.parallel(function, low, high) if parallel else lines.tightest(function, low, high)


def chosen(
    function: Function, low: Float[Tensor, "n size"], high: Float[Tensor, "n size"], choice: Float[Tensor, "n k _"]
) -> Lines:
    """Return lines chosen by numbers that are clamped into [0, 1]; any choice is sound, and NaN bounds give NaN.

    For a ReLU there is one number for each entry, the slope of the line below. For other functions there are two halves,
    for the lines below and above: the slope, from the function's least on the interval, 0, to its largest, 1. For a
    product they mix McCormick's planes.
    """
    low, high = low[:, None], high[:, None]
    if function == RELU:
        above, offset = upper_line(low, high)
        return Lines(lower_slope(low, high, choice), None, above, offset)
    if isinstance(function, Bilinear):
        return product(low, high, choice.clamp(0, 1))
    least, largest = lines.slopes(function, low, high)
    below, above = (least + part * (largest - least) for part in choice.clamp(0, 1).chunk(2, dim=-1))
    return Lines(
        below, lines.below(function, low, high, below), above, lines.above(function, low, high, above)
    )


def numbers(function: Function, low: Float[Tensor, "n size"], high: Float[Tensor, "n size"]) -> Float[Tensor, "n _"]:
    """Return the numbers by which `chosen` takes the lines of `around`, as nearly as rounding allows."""
    if function == RELU:
        return lower_slope(low, high, None)
    if isinstance(function, Bilinear):
        return torch.full_like(low, 0.5)
    found, (least, largest) = lines.tightest(function, low, high), lines.slopes(function, low, high)
    width = (largest - least).clamp(min=1e-300)
    return torch.cat([(slope - least) / width for slope in (found.lower_slope, found.upper_slope)], dim=-1).clamp(0, 1)


def product(low: Tensor, high: Tensor, mix: Tensor | None) -> Lines:
    """Return planes below and above the product of two halves, by a mix of McCormick's for each side; None: their means.

    The slopes of both factors stand side by side, one half behind the other.
    """
    (first, second), (above, beyond) = low.chunk(2, dim=-1), high.chunk(2, dim=-1)
    mixes = (None, None) if mix is None else mix.chunk(2, dim=-1)
    return lines.product(first, above, second, beyond, *mixes)


def image(
    function: Function, low: Float[Tensor, "n size"], high: Float[Tensor, "n size"]
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
    """Return bounds of an activation's outputs; NaN bounds give NaN."""
    if function == RELU:
        below, above = low.clamp(min=0), high.clamp(min=0)
        unknown = low.isnan()
        return torch.where(unknown, torch.nan, below), torch.where(unknown, torch.nan, above)
    if isinstance(function, Bilinear):
        (a, b), (c, d) = low.chunk(2, dim=-1), high.chunk(2, dim=-1)
        corners = torch.stack([lines.times(x, y) for x in (a, c) for y in (b, d)])
        return lines.down(corners.amin(dim=0)), lines.up(corners.amax(dim=0))
    return lines.enclose(function, low, high)


def undecided(
    function: Function, low: Float[Tensor, "n size"], high: Float[Tensor, "n size"]
) -> Bool[Tensor, "n size"]:
    """Say which inputs of an activation need sharper bounds: those on which it is not known to be linear."""
    if function == IDENTITY:
        return torch.zeros_like(low, dtype=torch.bool)
    if function == RELU:
        return (low < 0) & (high > 0)
    if isinstance(function, PiecewiseLinear):
        return torch.stack([(low < knot) & (high > knot) for knot in function.knots.to(low)]).any(dim=0)
    return high > low


def upper_line(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return slope and offset of the line above a ReLU on [low, high]; NaN bounds give NaN."""
    unstable = (low < 0) & (high > 0)
    slope = torch.where(unstable, high / (high - low), (low >= 0).to(low.dtype))
    slope = torch.where(low.isnan() | high.isnan(), torch.nan, slope)
    return slope, torch.where(unstable, -low * slope, 0.0)


def lower_slope(low: Tensor, high: Tensor, chosen: Tensor | None) -> Tensor:
    """Return the slope of the line below a ReLU on [low, high]: 0 or 1 where the sign is known, else as chosen."""
    free = (high > -low).to(low.dtype) if chosen is None else chosen.clamp(0, 1)
    return torch.where((low < 0) & (high > 0), free, (low >= 0).to(low.dtype))
