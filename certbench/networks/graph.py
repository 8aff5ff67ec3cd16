"""Graphs of networks: what a module computes, as affine maps, elementwise functions, products and sums.

A value is a flat vector in float64, of one input. So a view is no node at all, and slices, permutations, concatenations
and padding are affine maps. `operators` makes nodes of torch's operators; `reading` makes a graph of a classifier.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from certbench.networks.activations import Activation
from certbench.networks.maps import Map
from certbench.networks.piecewise_linear import RELU


@dataclass(frozen=True, eq=False)
class Block:
    """A function that several nodes compute together; some bounds are tighter for all of it than node by node.

    Attributes:
        sources: places of the nodes that it is a function of.
    """

    sources: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Larger(Block):
    """The larger one of two values, entry by entry."""


@dataclass(frozen=True, eq=False)
class Largest(Block):
    """The largest entry of each window of a value.

    Attributes:
        windows: places of the members of each window; a place may stand in one more than once.
    """

    windows: Int64[Tensor, "members size"]


@dataclass(frozen=True, eq=False)
class Steep(Block):
    """A function of each entry whose slopes have bounds.

    Attributes:
        least: lower bound of the slopes.
        most: upper bound of the slopes.
    """

    least: float
    most: float


@dataclass(frozen=True, eq=False)
class Softmax(Block):
    """The softmax of each row of a value.

    Attributes:
        row: number of entries of a row.
        log: whether its logarithm is taken.
    """

    row: int
    log: bool


@dataclass(frozen=True, eq=False)
class Normalised(Block):
    r"""Each row u of a value as $u / \sqrt{\|u\|_2^2 / n + \epsilon}$.

    Attributes:
        row: number n of entries of a row.
        eps: the number under the root; not negative.
    """

    row: int
    eps: float


@dataclass(frozen=True, eq=False)
class Node:
    """A value of the graph.

    Attributes:
        sources: places of the earlier nodes that it is computed from.
        size: number of entries.
        origin: the layer and the line of the user's code, or the operator where these are not known.
        block: what this node and some before it compute together, if that is known.
    """

    sources: tuple[int, ...]
    size: int
    origin: str
    block: Block | None = field(default=None, kw_only=True)

    def value(self, *sources: Float[Tensor, "n _"]) -> Float[Tensor, "n size"]:
        """Compute the node's value from its sources'."""
        raise NotImplementedError

    def describe(self) -> str:
        """Return what the node does, in a few words."""
        return type(self).__name__.lower()


@dataclass(frozen=True, eq=False)
class Input(Node):
    """The flat input."""


@dataclass(frozen=True, eq=False)
class Affine(Node):
    """A linear map of one value, and a bias.

    Attributes:
        map: the map; None: the identity.
        bias: one entry per output; None: zero.
        height: moduli of all constants that went into the bias; None: those of the bias.
    """

    map: Map | None = None
    bias: Float[Tensor, " size"] | None = None
    height: Float[Tensor, " size"] | None = None

    def value(self, *sources: Float[Tensor, "n _"]) -> Float[Tensor, "n size"]:
        """Apply the map, and add the bias."""
        moved = sources[0] if self.map is None else self.map.forward(sources[0])
        return moved if self.bias is None else moved + self.bias

    def describe(self) -> str:
        """Name the kind of map."""
        return "shift" if self.map is None else f"{type(self.map).__name__.lower()} {self.map.inputs} -> {self.size}"


@dataclass(frozen=True, eq=False)
class Sum(Node):
    """The sum of several values."""

    def value(self, *sources: Float[Tensor, "n _"]) -> Float[Tensor, "n size"]:
        """Add the sources up, from the first to the last."""
        total = sources[0]
        for source in sources[1:]:
            total = total + source
        return total


@dataclass(frozen=True, eq=False)
class Elementwise(Node):
    """A function of every entry of one value."""

    function: Activation

    def value(self, *sources: Float[Tensor, "n _"]) -> Float[Tensor, "n size"]:
        """Apply the function."""
        return sources[0].clamp(min=0) if self.function == RELU else self.function.value(sources[0])

    def describe(self) -> str:
        """Name the function."""
        return self.function.name


@dataclass(frozen=True, eq=False)
class Product(Node):
    """The product of two values, entry by entry."""

    def value(self, *sources: Float[Tensor, "n _"]) -> Float[Tensor, "n size"]:
        """Multiply."""
        return sources[0] * sources[1]


@dataclass(frozen=True, eq=False)
class Graph:
    """The values that a module computes on the way from an input to its outputs.

    Attributes:
        nodes: the nodes; each reads earlier ones, the first is the input and the last one gives the outputs.
        head: the last function of the module, if it was left out because it keeps the order of the classes.
        computed: whether the module computes some of its constants when it runs; their rounding is not followed.
        layers: places of the values that leave a layer of the module, by its name in `named_modules`.
        masked: whether the module computes values of minus infinity, which a softmax leaves out; the nodes do not.
    """

    nodes: tuple[Node, ...]
    head: str | None = None
    computed: bool = False
    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    masked: bool = False
    folds: dict[Any, Any] = field(default_factory=dict, repr=False)
    """Folds that were made of the graph before, so that work is shared."""

    @property
    def inputs(self) -> int:
        """Number of entries of an input."""
        return self.nodes[0].size

    def values(self, x: Float[Tensor, "n inputs"]) -> list[Float[Tensor, "n _"]]:
        """Compute all values at flat inputs; the last are the outputs."""
        found = [x]
        for node in self.nodes[1:]:
            found.append(node.value(*(found[source] for source in node.sources)))
        return found


def pruned(nodes: Sequence[Node], last: int, first: int = 0) -> tuple[Node, ...]:
    """Return the nodes that a value needs, the input, and the value itself as the last node.

    Args:
        nodes: the nodes.
        last: place of the value.
        first: place of the value that becomes the input; it must be on every way from the input to `last`.
    """
    places = kept(nodes, last, first)

    def moved(node: Node) -> Node:
        block = node.block
        if block is not None:  # cut in two, it is none any more
            inside = all(source in places for source in block.sources)
            block = replace(block, sources=tuple(places[source] for source in block.sources)) if inside else None
        return replace(node, sources=tuple(places[source] for source in node.sources), block=block)

    start = nodes[first]
    return Input((), start.size, start.origin), *(moved(nodes[old]) for old in places if old != first)


def kept(nodes: Sequence[Node], last: int, first: int = 0) -> dict[int, int]:
    """Return the new places of the nodes that `pruned` keeps, by their old ones."""
    needed = {first, last}
    for at in range(last, first, -1):
        if at in needed:
            needed.update(nodes[at].sources)
    return {old: new for new, old in enumerate(sorted(needed))}


def bypass(graph: Graph, at: int) -> Node | None:
    """Return a node that a way from the input to the outputs goes through without the value at `at`; None: none does.

    It is the first one behind the value, if there is one that joins both ways.
    """
    around, behind = {0}, {at}
    joined = None
    for place, node in enumerate(graph.nodes[1:], 1):
        if place != at and any(source in around for source in node.sources):
            around.add(place)
            if any(source in behind for source in node.sources):
                joined = joined or node
        if any(source in behind for source in node.sources):
            behind.add(place)
    last = len(graph.nodes) - 1
    return (joined or graph.nodes[last]) if last in around else None


def joined(graphs: Sequence[Graph]) -> Graph:
    """Return the graph that applies one graph after the other."""
    nodes = list(graphs[0].nodes)
    for graph in graphs[1:]:
        start = len(nodes) - 1

        def moved(node: Node, start: int = start) -> Node:
            block = node.block
            if block is not None:
                block = replace(block, sources=tuple(source + start for source in block.sources))
            return replace(node, sources=tuple(source + start for source in node.sources), block=block)

        nodes += [moved(node) for node in graph.nodes[1:]]
    return Graph(tuple(nodes), None, any(graph.computed for graph in graphs))
