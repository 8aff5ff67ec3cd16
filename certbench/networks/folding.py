"""Folding of graphs into networks: everything affine between two activations becomes one layer."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.errors import UnsupportedError
from certbench.networks.activations import Activation
from certbench.networks.graph import Affine, Elementwise, Graph, Larger, Largest, Node, Product, Softmax, Sum
from certbench.networks.layers import Bilinear, Layer, Network, Peak, RowSoftmax
from certbench.networks.maps import DENSE_LIMIT, Chain, Dense, Map, Scale
from certbench.networks.maps import Sum as SumOfMaps
from certbench.networks.piecewise_linear import IDENTITY, RELU, PiecewiseLinear
from certbench.networks.structured_maps import Select, Sparse
from certbench.numerics.rounding import LARGEST, TOO_LARGE

UNDERFLOW = 2.0**-125
"""Allowance for underflow in the height of every layer: times one rounding of float32 it is the smallest float32."""

OTHERS = "`certbench show-network` lists the certifiers that can bound it"
"""Advice for who meets a refusal."""

WIDE = 2048
"""Number of entries from which on intervals bound a layer that is much wider than its sources. A judgement: time."""


@dataclass(frozen=True, eq=False)
class _Terms:
    """A value of the graph: `bias` plus, for each source, a sum of chains of maps. An empty chain is the identity.

    `height` sums the moduli of all constants that went into the bias.
    """

    chains: Mapping[int, tuple[tuple[Map, ...], ...]]
    bias: Float[Tensor, " size"]
    height: Float[Tensor, " size"]

    @staticmethod
    def source(at: int, size: int, device: torch.device) -> "_Terms":
        """Return the terms of a source itself."""
        zero = torch.zeros(size, dtype=torch.float64, device=device)
        return _Terms({at: ((),)}, zero, zero)

    def then(self, part: Map | None, bias: Tensor | None = None, height: Tensor | None = None) -> "_Terms":
        """Apply a map, and add a bias."""
        chains, moved, carried = self.chains, self.bias, self.height
        if part is not None:
            chains = {source: tuple((*chain, part) for chain in found) for source, found in chains.items()}
            moved, carried = part.forward(moved[None])[0], part.absolute().forward(carried[None])[0] + UNDERFLOW
        if bias is not None:
            moved, carried = moved + bias, carried + (bias.abs() if height is None else height)
        return _Terms(chains, moved, carried)

    def plus(self, other: "_Terms") -> "_Terms":
        """Add two values."""
        chains = {
            source: (*self.chains.get(source, ()), *other.chains.get(source, ()))
            for source in {**self.chains, **other.chains}
        }
        return _Terms(chains, self.bias + other.bias, self.height + other.height)

    def layer(self) -> Layer:
        """Return the layer; each sum of maps is folded into one matrix where that is small."""
        maps = {source: _folded(chains, self.bias) for source, chains in self.chains.items()}
        paths = {source: _path(chains, self.bias) for source, chains in self.chains.items()}
        return Layer(maps, self.bias, paths, self.height)

    def is_copy(self) -> bool:
        """Say whether every entry is an entry of a source."""
        chains = [chain for found in self.chains.values() for chain in found]
        if any(not isinstance(part, Select) for chain in chains for part in chain) or bool(self.bias.any()):
            return False
        counts = torch.zeros_like(self.bias)
        for chain in chains:
            ones = torch.ones(1, chain[0].inputs if chain else len(counts), dtype=counts.dtype, device=counts.device)
            for part in chain:
                ones = part.forward(ones)
            counts = counts + ones[0]
        return bool((counts == 1).all())

    def is_cheap(self) -> bool:
        """Say whether it costs little to compute the value again wherever it is read: small matrices, or no map."""
        maps = [part for chains in self.chains.values() for chain in chains for part in chain]
        return all(isinstance(part, Scale | Select) or part.inputs * part.outputs <= DENSE_LIMIT for part in maps) or (
            len(maps) <= 1
        )


def layered(graph: Graph, relus: bool = False, others: bool = False) -> Network:
    """Fold a graph into affine layers with an activation after each.

    A value that is read more than once and is costly to compute becomes a layer of its own, with the identity after it;
    so do a factor of a product, and a maximum.

    Args:
        graph: the graph.
        relus: whether to write continuous piecewise linear functions as sums of ReLUs, and refuse all others.
        others: whether to keep those others.

    Raises:
        UnsupportedError: `relus` without `others`, and a function is not piecewise linear; the message names it.
    """
    key = ("layers", relus, others)
    if key not in graph.folds:
        fold = _Fold(graph, relus, others)
        for at in range(len(graph.nodes)):
            fold.follow(at)
        graph.folds[key] = fold.network()
    found: Network = graph.folds[key]
    return found


def is_piecewise_linear(graph: Graph) -> bool:
    """Say whether all functions are continuous and piecewise linear, so that `layered` can write them as ReLUs."""
    functions = (node.function for node in graph.nodes if isinstance(node, Elementwise))
    return not any(isinstance(node, Product) for node in graph.nodes) and all(
        isinstance(function, PiecewiseLinear) for function in functions
    )


class _Fold:
    """The layers so far, and the terms of each value."""

    def __init__(self, graph: Graph, relus: bool, others: bool) -> None:
        self.graph, self.relus, self.others = graph, relus, others
        maps = [node.map for node in graph.nodes if isinstance(node, Affine) and node.map is not None]
        self.device = maps[0].device if maps else torch.device("cpu")
        self.layers: list[_Terms] = []
        self.activations: list[Activation | Bilinear | RowSoftmax] = []
        self.origins: list[str] = []
        self.rewritten = False
        self.users = Counter(source for node in graph.nodes for source in node.sources)
        self.factors = {self.original(at) for n in graph.nodes if isinstance(n, Product) for at in n.sources}
        self.bounded: set[int] = set()
        self.copied: set[int] = set()
        self.peaks: dict[int, tuple[_Terms, Tensor]] = {}
        self.inner = set() if relus else _inner(graph, self.users)
        self.wide = {
            node.sources[0]
            for at, node in enumerate(graph.nodes)
            if isinstance(node, Elementwise) and at not in self.inner and self.widens(node)
        }
        self.factors |= {self.original(graph.nodes[at].sources[0]) for at in self.wide}
        self.values: list[_Terms] = []

    def activate(self, terms: _Terms, function: Activation | Bilinear | RowSoftmax, origin: str) -> _Terms:
        """Make the activation of a value a new source."""
        self.layers.append(terms)
        self.activations.append(function)
        self.origins.append(origin)
        size = len(terms.bias) // (2 if isinstance(function, Bilinear) else 1)
        return _Terms.source(len(self.layers), size, self.device)

    def original(self, at: int) -> int:
        """Return the node whose entries a value repeats."""
        node = self.graph.nodes[at]
        while isinstance(node, Affine) and isinstance(node.map, Select) and node.bias is None:
            at = node.sources[0]
            node = self.graph.nodes[at]
        return at

    def widens(self, node: Elementwise) -> bool:
        """Say whether a function is applied to many more entries than they are made from, by a sparse map."""
        before = self.graph.nodes[node.sources[0]]
        made = isinstance(before, Affine) and isinstance(before.map, Sparse)
        return made and before.size > WIDE and before.size > 4 * self.graph.nodes[before.sources[0]].size

    def follow(self, at: int) -> None:
        """Find the terms of one node."""
        node = self.graph.nodes[at]
        if at in self.inner:
            self.values.append(self.values[0])  # no one reads it
            return
        if not self.relus and _is_softmax(node):
            assert isinstance(node.block, Softmax)
            rows = self.values[node.block.sources[0]]
            self.values.append(self.activate(rows, RowSoftmax(node.block.row), node.origin))
            return
        sources = [self.values[source] for source in node.sources]
        if isinstance(node, Affine):
            found = sources[0].then(node.map, node.bias, node.height)
        elif isinstance(node, Sum):
            found = sources[0]
            for other in sources[1:]:
                found = found.plus(other)
        elif isinstance(node, Elementwise):
            if node.sources[0] in self.wide and not self.relus:
                self.copied.add(len(self.layers))
            found = self.apply(sources[0], node)
        elif isinstance(node, Product):
            if self.relus and not self.others:
                reason = "two values that depend on the input are multiplied, so this is no ReLU network"
                raise UnsupportedError(f"{node.origin}: {reason}; {OTHERS}")
            found = self.activate(_stacked(sources), Bilinear(), node.origin)
        else:
            found = _Terms.source(0, node.size, self.device)
        if isinstance(node.block, Larger | Largest) and not self.relus:
            self.peaks[len(self.layers)] = self.members(node.block)
            found = self.activate(found, IDENTITY, node.origin)
        elif isinstance(node, Affine | Sum) and not self.relus:
            if at in self.factors:  # so that each factor is bounded once, however often it is repeated
                self.bounded.add(len(self.layers))
                found = self.activate(found, IDENTITY, node.origin)
            elif self.users[at] > 1 and not found.is_cheap():
                found = self.activate(found, IDENTITY, node.origin)
        self.values.append(found)

    def members(self, block: Larger | Largest) -> tuple[_Terms, Tensor]:
        """Return a value, and the places of those of its entries whose largest ones a block finds."""
        values = [self.values[source] for source in block.sources]
        if isinstance(block, Largest):
            return values[0], block.windows
        size = len(values[0].bias)
        return _stacked(values), torch.arange(2 * size, device=self.device).view(2, size)

    def is_copied(self, layer: int) -> bool:
        """Say whether intervals bound a layer. Entries of a maximum do not count as copies: nothing else bounds it."""
        terms = self.layers[layer]
        return layer in self.copied or (terms.is_copy() and not any(at - 1 in self.peaks for at in terms.chains))

    def apply(self, terms: _Terms, node: Elementwise) -> _Terms:
        """Apply a function, or the ReLUs that it is made of."""
        function = node.function
        if not self.relus or function == RELU:
            return self.activate(terms, function, node.origin)
        if not isinstance(function, PiecewiseLinear):
            if self.others:
                return self.activate(terms, function, node.origin)
            raise UnsupportedError(
                f"{node.origin}: {function.name} is not piecewise linear, so this is no ReLU network; {OTHERS}"
            )
        self.rewritten = True
        size = len(terms.bias)
        knots, slopes, start = (part.to(terms.bias) for part in (function.knots, function.slopes, function.start))
        knots, slopes = (part.reshape(len(part), part[0].numel() if len(part) else 1) for part in (knots, slopes))
        knots, slopes = knots.expand(-1, size), slopes.expand(-1, size)
        found = terms.then(Scale(slopes[0].clone()), (start - (slopes[0] * knots[0] if len(knots) else 0)).expand(size))
        for knot, step in zip(knots, slopes.diff(dim=0), strict=True):
            relu = self.activate(terms.then(None, -knot), RELU, node.origin)
            found = found.plus(relu.then(Scale(step)))
        return found

    def network(self) -> Network:
        """Return the network; the value of the last node gives the outputs.

        Raises:
            UnsupportedError: underflow could change a margin.
        """
        pure = all(function == RELU for function in self.activations)
        reason = None
        if self.graph.computed:
            reason = "the module computes constants when it runs, whose rounding is not followed"
        elif self.graph.head is not None:
            reason = f"the rounding errors of {self.graph.head}, the last function of the module, are not followed"
        elif self.rewritten or any(function not in (RELU, IDENTITY) for function in self.activations):
            reason = "the rounding errors of functions other than ReLU are not followed"
        layers = tuple(terms.layer() for terms in (*self.layers, self.values[-1]))
        if not math.prod(max(1.0, _gain(part)) for layer in layers for part in layer.paths.values()) < LARGEST:
            raise UnsupportedError(TOO_LARGE)
        return Network(
            layers,
            self.graph.inputs,
            () if pure else tuple(self.activations),
            frozenset() if pure else frozenset(i for i in range(len(self.layers)) if self.is_copied(i)),
            frozenset(self.bounded),
            reason,
            self.graph.head,
            tuple(self.origins),
            {i: Peak(terms.layer(), windows) for i, (terms, windows) in self.peaks.items()},
        )


def _is_softmax(node: Node) -> bool:
    """Say whether a node is a softmax, which is bounded as one function."""
    return isinstance(node.block, Softmax) and not node.block.log


def _inner(graph: Graph, users: Mapping[int, int]) -> set[int]:
    """Return the nodes of which softmax functions are composed, if nothing else reads them."""
    found: set[int] = set()
    for at, node in enumerate(graph.nodes):
        if node.block is None or not _is_softmax(node):
            continue
        inside, outer = [at], set(node.block.sources)
        for one in inside:
            inside += [source for source in graph.nodes[one].sources if source not in outer and source not in inside]
        reads = Counter(source for one in inside for source in graph.nodes[one].sources)
        if all(users[one] == reads[one] for one in inside[1:]):
            found.update(inside[1:])
    return found


def _gain(path: Map) -> float:
    """Return the largest sum of a row of moduli; for a chain the product of those of its maps, each at least 1."""
    if isinstance(path, Chain):
        return math.prod(max(1.0, _gain(part)) for part in path.maps)
    if isinstance(path, SumOfMaps):
        return sum(_gain(part) for part in path.maps)
    ones = torch.ones(1, path.inputs, dtype=torch.float64, device=path.device)
    return float(path.forward(ones).max())


def _stacked(values: Sequence[_Terms]) -> _Terms:
    """Put values one behind the other."""
    size, device = sum(len(value.bias) for value in values), values[0].bias.device
    parts, start = [], 0
    for value in values:
        index = torch.full((size,), -1, dtype=torch.int64, device=device)
        end = start + len(value.bias)
        index[start:end] = torch.arange(len(value.bias), device=device)
        parts.append(value.then(Select(index, len(value.bias))))
        start = end
    found = parts[0]
    for other in parts[1:]:
        found = found.plus(other)
    return found


def _folded(chains: tuple[tuple[Map, ...], ...], bias: Tensor) -> Map:
    """Make one map of a sum of chains: a matrix where that is small."""
    whole = _whole(chains, bias)
    if all(chains) and all(isinstance(part, Select) for chain in chains for part in chain):
        places = torch.arange(1, whole.inputs + 1, dtype=bias.dtype, device=bias.device)
        counts, found = whole.forward(torch.stack([torch.ones_like(places), places]))
        if bool((counts <= 1).all()):
            return Select(found.long() - 1, whole.inputs)
    if not isinstance(whole, Dense) and whole.inputs * whole.outputs <= DENSE_LIMIT:
        if whole.inputs**2 > 4 * DENSE_LIMIT and whole.outputs < whole.inputs:  # by rows: fewer vectors on the way
            eye = torch.eye(whole.outputs, dtype=bias.dtype, device=bias.device)
            return Dense(whole.transpose(eye).contiguous())
        eye = torch.eye(whole.inputs, dtype=bias.dtype, device=bias.device)
        return Dense(whole.forward(eye).T.contiguous())
    return whole


def _path(chains: tuple[tuple[Map, ...], ...], bias: Tensor) -> Map:
    """Return the moduli along the paths of a sum of chains, which are not folded."""
    return _whole(tuple(tuple(part.absolute() for part in chain) for chain in chains), bias)


def _whole(chains: tuple[tuple[Map, ...], ...], bias: Tensor) -> Map:
    """Return a sum of chains without folding it."""
    parts: list[Map] = []
    for chain in chains:
        if not chain:
            parts.append(Scale(torch.ones_like(bias)))
        else:
            parts.append(chain[0] if len(chain) == 1 else Chain(chain))
    return parts[0] if len(parts) == 1 else SumOfMaps(tuple(parts))
