"""Leaves of a branch-and-bound tree: what is decided there, and several of them side by side."""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from certbench.verifiers.bounds.optimise import Choice
from certbench.verifiers.bounds.region import LayerBounds, Region


@dataclass(order=True)
class Leaf:
    """A class and cuts: decided signs of z - p, where z is a pre-activation, and p is 0 in ReLU networks.

    Attributes:
        radius: proved radius: no counterexample of the class closer than this has these signs.
        order: a counter that makes the order total.
        row: index of the class among the other classes.
        neurons: the decided neurons, by their place among all hidden neurons.
        signs: 1 for z >= p, -1 for z <= p.
        points: the numbers p.
        level: radius of the ball over which it was bounded last; 0 if never.
        tries: number of times that it was bounded without being split.
        alpha: slopes, as a start for the next bound, in half precision; NaN where there is none.
        beta: multipliers of the decided neurons, likewise.
        ends: bounds of the neurons, in networks with other functions than ReLUs.
        reach: radius of the ball over which these hold.
        first: first layer that has no bounds yet with all cuts.
    """

    radius: float
    order: int
    row: int = field(compare=False)
    neurons: Tensor = field(compare=False)
    signs: Tensor = field(compare=False)
    points: Tensor = field(compare=False)
    level: float = field(compare=False, default=0.0)
    tries: int = field(compare=False, default=0)
    alpha: Tensor | None = field(compare=False, default=None)
    beta: Tensor | None = field(compare=False, default=None)
    ends: tuple[Tensor, Tensor] | None = field(compare=False, default=None)
    reach: float = field(compare=False, default=0.0)
    first: int = field(compare=False, default=0)


class Batch(NamedTuple):
    """Leaves side by side.

    Attributes:
        region: the ball of each leaf, with the cuts that are half-spaces of the input.
        bounds: bounds of the neurons, with all cuts built in.
        start: lines and multipliers to start with.
        split: which neurons have cuts.
        rows: the margin of each leaf.
        empty: which leaves are empty in this ball.
    """

    region: Region
    bounds: LayerBounds
    start: Choice
    split: Tensor
    rows: Tensor
    empty: Tensor
