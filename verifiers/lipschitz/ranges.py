"""Proved ranges of the values of a graph, over a box or over all of R^d; they may be infinite on either side."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.core.threat import Domain, ThreatModel
from certbench.errors import UnsupportedError
from certbench.networks.graph import (
    Affine,
    Elementwise,
    Graph,
    Larger,
    Largest,
    Node,
    Normalised,
    Product,
    Softmax,
    Sum,
)
from certbench.networks.image_maps import Convolution, Separable
from certbench.networks.maps import Dense, Map, Scale
from certbench.networks.structured_maps import Along, Select, Sparse, Transposed
from certbench.numerics.rounding import TINY, gamma
from certbench.verifiers.bounds.lines import enclose

CONSTANT = 16
"""Largest number of roundings in a constant of the graph that the reader computes, as in a batch normalisation."""

Range = tuple[Float[Tensor, " size"], Float[Tensor, " size"]]
"""Lower and upper bounds of the entries of a value."""


class Ranges:
    """Ranges of a graph's values, each computed when it is asked for first, after those of the nodes before it."""

    def __init__(self, graph: Graph, domain: Domain | None) -> None:
        """Start with the range of the inputs: a box, or all of R^d."""
        self.graph = graph
        like = torch.zeros(graph.inputs, dtype=torch.float64)
        low, high = ThreatModel(1.0, domain).ends(like)
        self.known: list[Range] = [(like + low, like + high)]

    @torch.no_grad()
    def of(self, at: int) -> Range:
        """Return the range of one node's value."""
        while len(self.known) <= at:
            node = self.graph.nodes[len(self.known)]
            low, high = self.follow(node)
            if node.block is not None:
                least, most = self.together(node)
                low, high = torch.maximum(low, least), torch.minimum(high, most)
            unknown = low.isnan() | high.isnan() | (low > high)
            self.known.append((torch.where(unknown, -math.inf, low), torch.where(unknown, math.inf, high)))
        return self.known[at]

    def follow(self, node: Node) -> Range:
        """Find the range of a value from those of its sources."""
        sources = [self.known[source] for source in node.sources]
        if isinstance(node, Affine):
            return affine(node, *sources[0])
        if isinstance(node, Elementwise):
            return enclose(node.function, *sources[0])
        if isinstance(node, Product):
            return product(*sources)
        if isinstance(node, Sum):
            low, high = sources[0]
            for least, most in sources[1:]:
                low, high = (
                    below(low + least, low.abs() + least.abs(), 1),
                    above(high + most, high.abs() + most.abs(), 1),
                )
            return low, high
        raise UnsupportedError(f"{node.origin}: there is no rule here for the range of a {node.describe()}")

    def together(self, node: Node) -> Range:
        """Find the range of what several nodes compute together."""
        block = node.block
        low, high = self.known[block.sources[0]] if block is not None else self.known[0]
        if isinstance(block, Larger):
            other = self.known[block.sources[1]]
            return torch.maximum(low, other[0]), torch.maximum(high, other[1])
        if isinstance(block, Largest):
            return low[block.windows].amax(dim=0), high[block.windows].amax(dim=0)
        most = torch.full((node.size,), math.inf, dtype=torch.float64)
        if isinstance(block, Softmax):
            return (-most, torch.zeros_like(most)) if block.log else (torch.zeros_like(most), torch.ones_like(most))
        if isinstance(block, Normalised):  # no entry of u is longer than u
            longest = torch.full_like(most, math.sqrt(block.row) * (1 + gamma(4)))
            return -longest, longest
        return -most, most


def below(value: Tensor, size: Tensor, roundings: int) -> Tensor:
    """Lower a value that was computed with so many roundings from numbers of this size; NaN becomes -inf."""
    lowered = value - (gamma(roundings + 4) * size + TINY)
    return torch.where(value.isnan() | lowered.isnan() | (lowered == math.inf), -math.inf, lowered)


def above(value: Tensor, size: Tensor, roundings: int) -> Tensor:
    """Raise it likewise; NaN becomes inf."""
    return -below(-value, size, roundings)


def product(first: Range, second: Range) -> Range:
    """Find the range of the products of two values; 0 times infinity is 0, as no value is infinite."""
    corners = torch.stack([torch.nan_to_num(a * b, 0.0, math.inf, -math.inf) for a in first for b in second])
    least, most = corners.amin(dim=0), corners.amax(dim=0)
    return below(least, least.abs(), 1), above(most, most.abs(), 1)


def affine(node: Affine, low: Tensor, high: Tensor) -> Range:
    """Find the range of a map of a value and a bias."""
    if node.map is not None:
        low, high = image(node.map, low, high)
    if node.bias is not None:
        size = node.bias.abs() if node.height is None else node.height
        low, high = (side(end + node.bias, end.abs() + size, CONSTANT) for side, end in ((below, low), (above, high)))
    return low, high


def image(part: Map, low: Tensor, high: Tensor) -> Range:
    """Find the range of a linear map; positive and negative entries go apart, so that one end may be infinite."""
    if isinstance(part, Select):
        return part.forward(low[None])[0], part.forward(high[None])[0]
    positive, negative = entries(part, 1), entries(part, -1)
    finite_low, finite_high = (torch.where(end.isinf(), 0.0, end) for end in (low, high))
    down, up = low.isinf().to(low), high.isinf().to(low)

    def act(by: Map, end: Tensor) -> Tensor:
        return by.forward(end[None])[0]

    least = act(positive, finite_low) - act(negative, finite_high)
    most = act(positive, finite_high) - act(negative, finite_low)
    size = act(part.absolute(), torch.maximum(finite_low.abs(), finite_high.abs()))
    least, most = below(least, size, part.roundings + 2), above(most, size, part.roundings + 2)
    if bool(down.any() or up.any()):
        least = torch.where(act(positive, down) + act(negative, up) > 0, -math.inf, least)
        most = torch.where(act(positive, up) + act(negative, down) > 0, math.inf, most)
    return least, most


def entries(part: Map, sign: int) -> Map:
    """Return the map of the positive entries, or of minus the negative ones.

    Raises:
        UnsupportedError: the map is of another kind.
    """

    def cut(weight: Tensor) -> Tensor:
        return (sign * weight).clamp(min=0)

    match part:
        case Dense():
            return replace(part, weight=cut(part.weight))
        case Scale():
            return replace(part, diagonal=cut(part.diagonal))
        case Convolution():
            return replace(part, kernel=cut(part.kernel))
        case Along():
            return replace(part, weight=cut(part.weight))
        case Sparse():
            weight = part.weight
            values = cut(weight.values())
            cropped = torch.sparse_csr_tensor(
                weight.crow_indices(), weight.col_indices(), values, weight.shape, check_invariants=True
            )
            return replace(part, weight=cropped)
        case Separable():
            return replace(part, channels=replace(part.channels, diagonal=cut(part.channels.diagonal)))
        case Transposed():
            return replace(part, part=entries(part.part, sign))
        case Select():
            return part if sign > 0 else replace(part, index=torch.full_like(part.index, -1))
    raise UnsupportedError(f"there is no range here of a {type(part).__name__}")
