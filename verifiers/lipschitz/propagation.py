"""Constants carried through a graph, node by node: they bound how far outputs move when inputs do.

The file is long because the rules of all kinds of nodes are methods of one class, which share its tables.
"""

import copy
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from certbench.core.classifier import Classifier
from certbench.core.threat import Domain
from certbench.errors import NumericalError, UnsupportedError
from certbench.networks.curves import Softplus
from certbench.networks.graph import (
    Affine,
    Elementwise,
    Graph,
    Input,
    Larger,
    Largest,
    Node,
    Normalised,
    Product,
    Softmax,
    Steep,
    Sum,
)
from certbench.networks.maps import Dense, Map, Scale
from certbench.networks.piecewise_linear import PiecewiseLinear
from certbench.networks.reading import read
from certbench.networks.structured_maps import Select
from certbench.numerics.rounding import (
    LARGEST,
    TINY,
    TOO_LARGE,
    dual,
    gamma,
    lengths,
    longest,
    outward,
    product,
    products,
    total,
)
from certbench.verifiers.bounds.lines import slopes
from certbench.verifiers.lipschitz.folding import added, bounded, compose, linear
from certbench.verifiers.lipschitz.operator_norms import Normed, identity_norm, norm, row_norm, spread
from certbench.verifiers.lipschitz.ranges import Ranges

CHORDS = 2**24
"""Largest number of entries of a table of chords; larger tables are not followed. A judgement: 128 MB."""

JUMP = 20.0
"""Smallest threshold of a softplus whose jump there is ignored. torch's default; the jump is 2e-9 / beta."""


@torch.no_grad()
def constants_of(
    classifier: Classifier, p: float, rule: str = "best", domain: Domain | None = None
) -> tuple[Float[Tensor, "rows rows"], dict[str, Any]]:
    """Return Lipschitz constants from the p-norm, as in `LipschitzState`, and the facts behind them.

    The facts are the norms of the linear layers ("layers"), and why constants are infinite, if they are ("reason").

    Raises:
        UnsupportedError: the reader does not know the module, or a layer has no bound here.
        NumericalError: a parameter is NaN or infinite.
    """
    propagation = propagated(classifier, p, domain)
    facts: dict[str, Any] = {"layers": propagation.norms}
    if propagation.unbounded is not None:
        facts["reason"] = propagation.unbounded
    return propagation.pairs(classifier.num_classes, rule), facts


@torch.no_grad()
def feature_constants(features: Classifier, p: float) -> dict[float, float]:
    """Return Lipschitz constants of a map to flat features, from the p-norm to the 1-norm, the 2-norm and the inf-norm.

    Raises:
        UnsupportedError, NumericalError: as `constants_of`.
    """
    propagation = propagated(features, p)
    return {r: propagation.constant(r, features.num_classes) for r in (1.0, 2.0, math.inf)}


def propagated(classifier: Classifier, p: float, domain: Domain | None = None) -> "_Propagation":
    """Carry constants through the graph of a classifier, in float64 on the CPU."""
    return _Propagation(read(on_cpu(classifier)), p, domain)


def on_cpu(classifier: Classifier) -> Classifier:
    """Return a classifier on the CPU, where norms are proved."""
    if classifier.device.type == "cpu":
        return classifier
    return replace(classifier, module=copy.deepcopy(classifier.module).cpu())


@dataclass(frozen=True, eq=False)
class _Movement:
    """A bound of how far a value of the graph can move. The value is the linear `map` (None: the identity) of a base.

    Attributes:
        constants: r -> Lipschitz constant of the base from the input's p-norm to the r-norm. Values with the same
            object here have the same base.
        chords: if every input i moves by t_i, the base moves entry by entry by at most the sum of t_i `chords[i]`:
            moduli of weights multiplied along each path. None where the table would be too large.
        map: the linear part of the layers since the base, composed.
        names: names of these layers.
    """

    constants: Mapping[float, float]
    chords: Float[Tensor, "d size"] | None
    map: Normed | None = None
    names: tuple[str, ...] = ()


class _Propagation:
    """Moves the bounds from the input of a graph to its output."""

    def __init__(self, graph: Graph, p: float, domain: Domain | None) -> None:
        """Follow all nodes that the output needs."""
        self.graph, self.p = graph, p
        self.ranges = Ranges(graph, domain)
        self.norms: dict[str, dict[str, float]] = {}
        self.unbounded: str | None = None
        self.gain = 1.0
        self.movements: dict[int, _Movement] = {}
        users = _users(graph)
        for at in sorted(users):
            node = graph.nodes[at]
            try:
                self.movements[at] = self.follow(node)
            except UnsupportedError as error:
                raise UnsupportedError(f"{node.origin} {error}") from error
            for source in _sources(node):  # tables of chords are large
                users[source] -= 1
                if not users[source]:
                    del self.movements[source]
        self.outputs = self.movements[len(graph.nodes) - 1]

    def follow(self, node: Node) -> _Movement:
        """Apply the rule of one node."""
        before = [self.movements[source] for source in _sources(node)]
        match node.block:
            case Larger():
                return self.larger(*before)
            case Largest():
                return self.largest(before[0], node.block.windows)
            case Steep():
                steep = max(abs(node.block.least), abs(node.block.most))
                return self.stretch(before[0], torch.full((node.size,), steep, dtype=torch.float64), node)
            case Softmax():
                return self.softmax(before[0], node.block)
            case Normalised():
                return self.normalised(before[0], node, node.block)
        match node:
            case Input():
                return self.start(node.size)
            case Affine():
                return before[0] if node.map is None else self.apply(before[0], node.map, _name(node))
            case Sum():
                return self.combine(before, self.are_apart(node))
            case Product():
                return self.multiply(before, node)
            case Elementwise():
                return self.stretch(before[0], self.steepness(node), node)
        raise UnsupportedError("has no bound here")

    def start(self, d: int) -> _Movement:
        """Make the movement of the input itself."""
        chords = torch.eye(d, dtype=torch.float64) if d * d <= CHORDS else None
        return _Movement({r: identity_norm(self.p, r, d) for r in (self.p, 2.0)}, chords)

    def without_bound(self, node: Node, why: str) -> _Movement:
        """Make the movement of a value that may move any distance, and note the reason."""
        self.unbounded = self.unbounded or f"{node.origin}: {why}"
        return _Movement(dict.fromkeys((self.p, 2.0), math.inf), None)

    def grow(self, factor: float) -> None:
        """Count by what one layer may enlarge underflow.

        Raises:
            UnsupportedError: it could change a margin.
        """
        self.gain *= max(1.0, factor)
        if not self.gain < LARGEST:
            raise UnsupportedError(TOO_LARGE)

    def apply(self, before: _Movement, layer: Map, name: str) -> _Movement:
        """Apply a linear layer, composed with those before it if that is cheap."""
        part = self.once((layer,), lambda: bounded(layer))
        assert part is not None
        self.grow(row_norm(part, 1.0))
        joint: Normed | None = part
        if before.map is not None:
            inner = before.map
            joint = self.once((part, inner), lambda: compose(part, inner))
        if joint is None:
            before, joint = self.settle(before), part
        return replace(before, map=joint, names=(*before.names, name))

    def once(self, parts: tuple[Map, ...], make: Callable[[], Normed | None]) -> Normed | None:
        """Make a map of other ones. What comes of the graph's own maps is kept, so that norms are found once."""
        kept: dict[tuple[Map, ...], Normed | None] = self.graph.folds.setdefault("composed", {})
        own: set[Map | None] = self.graph.folds.setdefault("own maps", set())
        if not own:
            own.update(node.map for node in self.graph.nodes if isinstance(node, Affine))
        if parts not in kept:
            found = make()
            if not own.issuperset(parts):
                return found
            kept[parts] = found
            own.add(found)
        return kept[parts]

    def settle(self, before: _Movement) -> _Movement:
        """Make the value itself the base: pay for the norm of its map."""
        if before.map is None:
            return before
        paid = {(s, r): norm(before.map, s, r) for s in before.constants for r in before.constants}
        name = "+".join(before.names)
        while name in self.norms:
            name += " again"
        self.norms[name] = {f"{s:g}->{r:g}": bound for (s, r), bound in paid.items()}
        constants = {
            r: min(product(before.constants[s], paid[s, r]) for s in before.constants) for r in before.constants
        }
        if before.chords is None or len(before.chords) * before.map.outputs > CHORDS:
            return _Movement(constants, None)
        chords = spread(before.map, before.chords).flatten(1)
        return _Movement({r: min(bound, self.reach(chords, r)) for r, bound in constants.items()}, chords)

    def combine(self, values: Sequence[_Movement], apart: bool = False) -> _Movement:
        """Move a sum; `apart` says that no entry is moved by two of the values."""
        if all(value.constants is values[0].constants for value in values):
            joint = added([value.map for value in values])
            if joint is not None:
                names = tuple(dict.fromkeys(name for value in values for name in value.names))
                return replace(values[0], map=joint, names=names)
        settled = [self.settle(value) for value in values]
        chords = settled[0].chords
        for value in settled[1:]:
            chords = None if chords is None or value.chords is None else outward(chords + value.chords, 1)
        constants = {r: _total([value.constants[r] for value in settled], r if apart else 1.0) for r in (self.p, 2.0)}
        return _Movement(constants, chords)

    def are_apart(self, node: Sum) -> bool:
        """Say whether a sum only puts values side by side."""
        parts = [self.graph.nodes[source] for source in node.sources]
        taken = torch.zeros(node.size, dtype=torch.int64)
        for part in parts:
            if not isinstance(part, Affine) or not isinstance(part.map, Select):
                return False
            taken += part.map.index >= 0
        return bool((taken <= 1).all())

    def multiply(self, before: Sequence[_Movement], node: Product) -> _Movement:
        """Move a product: a b - a' b' = a (b - b') + b' (a - a')."""
        moduli = [torch.maximum(-low, high) for low, high in map(self.ranges.of, node.sources)]
        if not all(bool(part.isfinite().all()) for part in moduli):
            return self.without_bound(node, "a factor of a product has no bound; a domain of the inputs may give one")
        first, second = before
        name = _name(node)
        return self.combine(
            [
                self.apply(first, Scale(moduli[1].clamp(min=0)), name),
                self.apply(second, Scale(moduli[0].clamp(min=0)), name),
            ]
        )

    def steepness(self, node: Elementwise) -> Float[Tensor, " size"]:
        """Return the largest modulus of the slope of a function, entry by entry, over the range of its argument.

        That of a piecewise linear function is taken over the whole line: so the constants of ReLU networks are those
        of their weights.
        """
        function = node.function
        if isinstance(function, Softplus) and function.threshold < JUMP:
            raise UnsupportedError(
                f"jumps at its threshold {function.threshold:g}; write a threshold of at least {JUMP:g}"
            )
        if isinstance(function, PiecewiseLinear):
            high = torch.full((node.size,), math.inf, dtype=torch.float64)
            least, most = slopes(function, -high, high)
        else:
            least, most = slopes(function, *self.ranges.of(node.sources[0]))
        return torch.nan_to_num(torch.maximum(-least, most), math.inf, math.inf).clamp(min=0)

    def stretch(self, before: _Movement, steep: Float[Tensor, " size"], node: Node) -> _Movement:
        """Apply a function whose slopes have these moduli at most."""
        factor = float(steep.max())
        if factor == math.inf:
            return self.without_bound(
                node, f"the slope of {node.describe()} has no bound; a domain of the inputs may give one"
            )
        self.grow(factor)
        settled = self.settle(before)
        if bool((steep == factor).all()):
            return _scaled(settled, lambda r: factor, lambda chords: factor * chords)
        return _Movement(dict(settled.constants), settled.chords, Scale(steep), (_name(node),))

    def larger(self, first: _Movement, second: _Movement) -> _Movement:
        """Move the larger one of two values."""
        a, b = self.settle(first), self.settle(second)
        chords = None if a.chords is None or b.chords is None else torch.maximum(a.chords, b.chords)
        return _Movement({r: _total([a.constants[r], b.constants[r]], r) for r in a.constants}, chords)

    def largest(self, before: _Movement, windows: Tensor) -> _Movement:
        r"""Move the largest entries of windows.

        If m windows share one entry, the constant in the r-norm is $m^{1/r}$: a maximum moves no further than the entry
        of its window that moves most, and an impulse moves m maxima as far.
        """
        count = sharing(windows)

        def pool(chords: Tensor) -> Tensor:
            most = chords[:, windows[0]]
            for members in windows[1:]:
                most = torch.maximum(most, chords[:, members])
            return most

        return _scaled(self.settle(before), lambda r: identity_norm(math.inf, r, count), pool)

    def softmax(self, before: _Movement, block: Softmax) -> _Movement:
        r"""Move a softmax, or its logarithm.

        The Jacobian of s is $\operatorname{diag}(s) - s s^T$: sums of moduli in a row or column are
        $2 s_i (1 - s_i) \leq 1/2$, entries at most 1/4. That of log s is $I - 1 s^T$, a projection, whose norm
        $\|1\| \|s\|$ is that of $1 s^T$; its rows have sums of moduli of at most 2, its columns of max(1, n - 1).
        """
        n = block.row
        whole = {1.0: max(1.0, n - 1.0), 2.0: identity_norm(math.inf, 2.0, n), math.inf: 2.0}
        return _scaled(
            self.settle(before),
            lambda r: whole[r] if block.log else 0.5,
            lambda chords: (1.0 if block.log else 0.25) * _row_sums(chords, n),
        )

    def normalised(self, before: _Movement, node: Node, block: Normalised) -> _Movement:
        r"""Move rows over the root of their mean of squares plus $\epsilon$.

        With $g = (\|u\|^2 / n + \epsilon)^{-1/2}$ and $\theta = g^2 \|u\|^2 / n \leq 1$ the Jacobian is
        $g (I - \theta \hat u \hat u^T)$: symmetric, with eigenvalues in [0, g]. Its entries are at most g, and g / 2
        besides the diagonal. With $a = |\hat u_i|$ the sum of moduli of row i is at most
        $g \max(1, 1 - a^2 + a \sqrt{(n - 1)(1 - a^2)}) \leq g (1 + \sqrt n) / 2$.
        """
        low, high = (end.view(-1, block.row) for end in self.ranges.of(block.sources[0]))
        squares = torch.maximum(low, -high).clamp(min=0).square().mean(dim=1)
        least = (squares + block.eps) * (1 - gamma(block.row + 8)) - TINY
        rates = least.clamp(min=0).rsqrt() * (1 + gamma(8))
        factor = float(rates.max())
        if not math.isfinite(factor):
            return self.without_bound(node, "rows are divided by their length, which may be 0")
        self.grow(factor * block.row)
        mixed = product(factor, identity_norm(math.inf, 2.0, block.row) / 2 + 0.5)
        by = rates.repeat_interleave(block.row)
        return _scaled(
            self.settle(before),
            lambda r: factor if r == 2 else mixed,
            lambda chords: by * (0.5 * chords + 0.5 * _row_sums(chords, block.row)),
        )

    def reach(self, chords: Float[Tensor, "d size"], r: float) -> float:
        """Return the norm of a table of chords from p to r (for p = r = 2 infinite, since the layers' are smaller)."""
        if self.p == 1:
            return longest(chords, r)
        return longest(lengths(chords.T, 1.0)[None], r) if self.p == math.inf else math.inf

    def constant(self, r: float, size: int) -> float:
        """Return the constant of all outputs together, `size` of them, from p to r."""
        if self.unbounded is not None:
            return math.inf
        if self.outputs.map is None:
            return min(product(bound, identity_norm(s, r, size)) for s, bound in self.outputs.constants.items())
        return min(product(bound, norm(self.outputs.map, s, r)) for s, bound in self.outputs.constants.items())

    def pairs(self, classes: int, rule: str) -> Float[Tensor, "rows rows"]:
        r"""Return constants of f_c - f_j by a rule of `LayerwiseLipschitz`; the last index stands for the function 0.

        With constants $L_r$ and chords C of the base, and w the rows of the last affine layers (or of the identity):
        $L_r \|w_c - w_j\|_{r^*}$ and $\||w_c - w_j| C\|_{p^*}$. Where some value of the graph has no constant all are
        infinite, also if its weights are 0: it may be undefined somewhere.
        """
        if self.unbounded is not None:
            return torch.full((classes + 1, classes + 1), math.inf, dtype=torch.float64).fill_diagonal_(0.0)
        last = self.outputs
        if not isinstance(last.map, Dense):
            last = self.apply(self.settle(last), linear(torch.eye(classes, dtype=torch.float64)), "logits")
        assert isinstance(last.map, Dense)
        padded = functional.pad(last.map.weight, (0, 0, 0, 1)), functional.pad(last.map.error, (0, 0, 0, 1))
        constants = torch.zeros(classes + 1, classes + 1, dtype=torch.float64)
        if rule in ("tsuzuku", "centred", "naive"):
            alone, whole = self.whole(last, last.map, rule)
            constants[:], constants[:-1, -1], constants[-1, :-1] = whole, alone, alone
        else:
            chords = None if last.chords is None or rule == "pairwise" else last.chords.T
            if chords is not None and (classes + 1) ** 2 * chords.numel() > CHORDS**1.5:
                chords = None
            if chords is None and rule == "absolute":
                raise UnsupportedError("the moduli along all paths are too many for the rule 'absolute'")
            for c in range(classes + 1):
                rows = (padded[0][c] - padded[0]).abs() + (padded[1][c] + padded[1])
                bounds = [products(lengths(rows, dual(r)), bound) for r, bound in last.constants.items()]
                if chords is not None:
                    by_paths = lengths(outward(rows @ chords, rows.shape[1] + 3), dual(self.p))
                    bounds = [by_paths] if rule == "absolute" else [*bounds, by_paths]
                constants[c] = torch.stack(bounds).amin(dim=0)
        if bool(constants.isnan().any()):
            raise NumericalError("a weight is NaN or infinite")
        return torch.maximum(constants, constants.T).fill_diagonal_(0.0)

    def whole(self, last: "_Movement", layer: Dense, rule: str) -> tuple[float, float]:
        """Return constants of each logit and of each difference of two, from one constant for all logits together."""

        def constant(of: Dense, r: float) -> float:
            return min(product(bound, norm(of, s, r)) for s, bound in last.constants.items())

        if rule == "naive":
            return constant(layer, math.inf), 2 * constant(layer, math.inf)
        alone = constant(layer, 2.0)
        if rule == "centred":
            size = len(layer.weight)
            apart = torch.full((size, size), -1.0 / size, dtype=torch.float64)
            magnitude = -apart
            apart.diagonal().add_(1.0)
            magnitude.diagonal().add_(1.0)
            centred = compose(Dense(apart, magnitude, layer.shape, 2), layer)
            assert isinstance(centred, Dense)
            return alone, product(constant(centred, 2.0), math.nextafter(math.sqrt(2), 2))
        return alone, product(alone, math.nextafter(math.sqrt(2), 2))


def sharing(windows: Int64[Tensor, "members n"]) -> int:
    """Return the largest number of windows that share one entry."""
    outputs = torch.arange(windows.shape[1]).expand_as(windows)
    pairs = torch.unique(torch.stack([windows.flatten(), outputs.flatten()]), dim=1)
    return int(pairs[0].bincount().max())


def _sources(node: Node) -> tuple[int, ...]:
    """Return the nodes from which a node's movement follows."""
    return node.sources if node.block is None else node.block.sources


def _users(graph: Graph) -> Counter[int]:
    """Count for each node that the output's movement needs how many others need it; the output counts as one."""
    users = Counter({len(graph.nodes) - 1: 1, 0: 1})
    for at in range(len(graph.nodes) - 1, -1, -1):
        if at in users:
            users.update(_sources(graph.nodes[at]))
    return users


def _name(node: Node) -> str:
    """Name a node for evidence: by its layer, or by what it does."""
    layer = re.match(r"([\w.]+) \(", node.origin)
    return layer[1] if layer else node.describe().partition(" ")[0]


def _scaled(settled: _Movement, factor: Callable[[float], float], move: Callable[[Tensor], Tensor]) -> _Movement:
    """Apply a function that is `factor(r)`-Lipschitz in the r-norm; `move` is its effect on chords."""
    chords = None if settled.chords is None else outward(move(settled.chords), 4)
    return _Movement({r: product(bound, factor(r)) for r, bound in settled.constants.items()}, chords)


def _row_sums(chords: Float[Tensor, "d size"], row: int) -> Float[Tensor, "d size"]:
    """Return for each entry the sum of its row, rounded up."""
    rows = chords.view(len(chords), -1, row)
    return outward(rows.sum(dim=2, keepdim=True), row).expand_as(rows).flatten(1)


def _total(constants: Sequence[float], r: float) -> float:
    """Return the r-norm of several constants, rounded up."""
    if math.inf in constants:
        return math.inf
    if r == 1:
        found = constants[0]
        for other in constants[1:]:
            found = total(found, other)
        return found
    return longest(torch.tensor([constants], dtype=torch.float64), r)
