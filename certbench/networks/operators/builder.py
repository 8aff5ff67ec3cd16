"""What rules of operators build on: moving tensors, and the nodes that are made of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import scipy.sparse
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from certbench.errors import UnsupportedError
from certbench.networks import curves, s_shaped
from certbench.networks import piecewise_linear as pieces
from certbench.networks.activations import Activation
from certbench.networks.graph import Affine, Block, Elementwise, Input, Larger, Largest, Node, Product, Sum
from certbench.networks.maps import Map, Scale
from certbench.networks.structured_maps import Select, Sparse

aten: Any = torch.ops.aten


Shape = tuple[int, ...]


def packet(target: Any) -> Any:
    """Return an operator without its overload, as the tables name it."""
    return getattr(target, "overloadpacket", target)


@dataclass(frozen=True)
class Moving:
    """A tensor that depends on the input: a node of the graph, in a shape. The first axis is the batch's, of one.

    Attributes:
        node: place of the node.
        shape: the shape.
        masked: flat, the entries that are minus infinity whatever the input is, for a softmax that leaves them out. The
            node holds finite numbers there, which mean nothing. None: there are no such entries.
    """

    node: int
    shape: Shape
    masked: Bool[Tensor, " numel"] | None = field(default=None, compare=False)

    def view(self, shape: Sequence[int]) -> "Moving":
        """Return the same entries in another shape."""
        return Moving(self.node, tuple(shape), self.masked)

    def hiding(self, *masks: Bool[Tensor, " numel"] | None) -> "Moving":
        """Return the value with more entries that are minus infinity."""
        found = [mask for mask in (self.masked, *masks) if mask is not None and bool(mask.any())]
        return Moving(self.node, self.shape, torch.stack(found).any(dim=0)) if found else self

    def numel(self) -> int:
        """Return the number of entries."""
        return math.prod(self.shape)


FULL = 64
"""Largest number of entries whose centring is one matrix; larger ones subtract their mean. A judgement: memory."""


class Builder:
    """The nodes so far.

    Attributes:
        origin: what the next ones are said to come from.
        computed: whether the program computes numbers of its own, as weights of interpolation, with unknown rounding.
    """

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.nodes: list[Node] = [Input((), math.prod(shape), "input")]
        self.origin = ""
        self.computed = False
        self.device = device
        self.input = Moving(0, (1, *shape))

    def add(self, node: Node, shape: Sequence[int]) -> Moving:
        """Add a node."""
        self.nodes.append(node)
        return Moving(len(self.nodes) - 1, tuple(shape))

    def affine(
        self,
        value: Moving,
        part: Map | None,
        shape: Sequence[int],
        bias: Tensor | None = None,
        height: Tensor | None = None,
    ) -> Moving:
        """Apply a linear map, and add a bias of the result's size, or one that fits its shape."""
        if bias is not None:
            bias, height = self.flat(bias, shape), None if height is None else self.flat(height, shape)
        return self.add(Affine((value.node,), math.prod(shape), self.origin, part, bias, height), shape)

    def flat(self, constant: Any, shape: Sequence[int]) -> Tensor:
        """Return a constant as a flat vector of the entries of a shape."""
        whole = torch.as_tensor(constant, dtype=torch.float64, device=self.device)
        return (whole if whole.shape == (math.prod(shape),) else whole.expand(tuple(shape))).flatten()

    def shift(self, value: Moving, bias: Any) -> Moving:
        """Add a constant, whose entries may be minus infinity."""
        shift, masked = unmasked(self.flat(bias, value.shape))
        return self.affine(value, None, value.shape, shift).hiding(masked, value.masked)

    def scale(self, value: Moving, factor: Any, bias: Any = None) -> Moving:
        """Multiply by a constant, and add one, whose entries may be minus infinity.

        Raises:
            UnsupportedError: an entry that is minus infinity is multiplied by a number that is not positive.
        """
        shift, masked = (None, None) if bias is None else unmasked(self.flat(bias, value.shape))
        factors = self.flat(factor, value.shape).clone()
        if value.masked is not None and not bool((factors[value.masked] > 0).all()):
            raise UnsupportedError(f"multiplies -inf by a number that is not positive; {MASKS}")
        return self.affine(value, Scale(factors), value.shape, shift).hiding(masked, value.masked)

    def total(self, *values: Moving) -> Moving:
        """Add values of one shape."""
        sources = tuple(value.node for value in values)
        return self.add(Sum(sources, values[0].numel(), self.origin), values[0].shape)

    def apply(self, function: Activation, value: Moving) -> Moving:
        """Apply a function to each entry."""
        return self.add(Elementwise((value.node,), value.numel(), self.origin, function), value.shape)

    def product(self, first: Moving, second: Moving) -> Moving:
        """Multiply two values of one shape, entry by entry."""
        if first.node == second.node:
            return self.apply(curves.power(2.0), first)
        return self.add(Product((first.node, second.node), first.numel(), self.origin), first.shape)

    def difference(self, first: Moving, second: Moving) -> Moving:
        """Subtract."""
        return self.total(first, self.scale(second, -1.0))

    def select(self, value: Moving, index: Tensor, shape: Sequence[int], bias: Tensor | None = None) -> Moving:
        """Pick entries by their place in the flat value, -1 for none."""
        places = index.flatten()
        whole = torch.arange(value.numel(), device=places.device)
        if bias is None and places.shape == whole.shape and bool((places == whole).all()):
            return value.view(shape)
        return self.affine(value, Select(places, value.numel()), shape, bias)

    def expand(self, value: Moving, shape: Sequence[int]) -> Moving:
        """Repeat a value as torch does, to fit a shape."""
        places = self.places(value).expand(tuple(shape))
        found = self.select(value, places, shape)
        return found if value.masked is None else found.hiding(value.masked[places.flatten()])

    def places(self, value: Moving) -> Tensor:
        """Return the place of each entry, in the value's shape."""
        return torch.arange(value.numel(), device=self.device).reshape(value.shape)

    def summed(self, value: Moving, groups: Tensor, shape: Sequence[int], factor: float = 1.0) -> Moving:
        """Sum up the entries of each group; `groups` holds the place in the result of every entry."""
        rows, columns = groups.flatten(), torch.arange(value.numel())
        return self.affine(value, self.sparse(rows, columns, factor, math.prod(shape), value.numel()), shape)

    def sparse(self, rows: Tensor, columns: Tensor, values: Tensor | float, outputs: int, inputs: int) -> Sparse:
        """Make a sparse matrix of its entries; those of one place are summed up."""
        entries = values if isinstance(values, Tensor) else torch.full(rows.shape, values, dtype=torch.float64)
        places = (rows.cpu().numpy(), columns.cpu().numpy())
        matrix = scipy.sparse.csr_matrix((entries.cpu().numpy(), places), shape=(outputs, inputs))
        rounded = int(not float(values).is_integer()) if isinstance(values, float) else 0
        return Sparse.of(matrix, None, rounded, self.device)

    def marked(self, value: Moving, block: Block) -> Moving:
        """Note what the last node computes together with some before it."""
        if value.node == len(self.nodes) - 1:
            self.nodes[-1] = replace(self.nodes[-1], block=block)
        return value

    def larger(self, first: Moving, second: Moving) -> Moving:
        """Return the larger of two values, entry by entry: a + max(b - a, 0)."""
        found = self.total(first, self.apply(pieces.RELU, self.difference(second, first)))
        return self.marked(found, Larger((first.node, second.node)))

    def largest(self, value: Moving, windows: Tensor, shape: Sequence[int]) -> Moving:
        """Return the largest entry of each window: `windows` (members, outputs) holds places in the value.

        An increasing function before it comes after it: the maximum is the same, and there are fewer entries.
        """
        node = self.nodes[value.node]
        if isinstance(node, Elementwise) and increasing(node.function):
            before = Moving(node.sources[0], value.shape)
            return self.apply(node.function, self.largest(before, windows, shape))
        if len(windows) == 1:
            return self.select(value, windows, shape)
        count = math.prod(shape)
        block, moved = Largest((value.node,), windows), self.select(value, windows, windows.shape)
        while len(windows) > 1:
            half = len(windows) // 2
            windows = torch.arange(len(windows) * count, device=self.device).view(len(windows), count)
            first = self.select(moved, windows[:half], (half, count))
            joint = self.larger(first, self.select(moved, windows[half : 2 * half], (half, count)))
            if len(windows) % 2:
                rest = self.select(moved, windows[-1:], (1, count))
                windows = windows[: half + 1]
                moved = self.joined([joint, rest], (half + 1, count))
            else:
                windows, moved = windows[:half], joint
        return self.marked(moved.view(shape), block)

    def joined(self, values: Sequence[Moving], shape: Sequence[int]) -> Moving:
        """Put flat values one behind the other."""
        found: Moving = rearranged(
            self, lambda parts: torch.cat([p.flatten() for p in parts]), (list(values),), {}, shape
        )
        return found.view(shape)


def increasing(function: Activation) -> bool:
    """Say whether a function is known to be nowhere decreasing."""
    if isinstance(function, pieces.PiecewiseLinear):
        return function.slopes.dim() == 1 and bool((function.slopes >= 0).all())  # the same for all entries
    rising = (s_shaped.SShaped, curves.Elu, curves.Softplus, curves.LogSigmoid, curves.Exp, curves.Log)
    return isinstance(function, rising)


MASKS = (
    "infinity is known here only as a constant mask of -inf in front of a softmax: "
    "x.masked_fill(mask, -inf).softmax(dim)"
)
"""Advice in refusals of all other uses of infinity."""


def unmasked(constant: Float[Tensor, " numel"]) -> tuple[Float[Tensor, " numel"], Bool[Tensor, " numel"] | None]:
    """Return a constant with 0 where it is minus infinity, and these places; None if there are none.

    Raises:
        UnsupportedError: an entry is NaN or infinity.
    """
    if bool(constant.isfinite().all()):
        return constant, None
    masked = constant == -torch.inf
    found = torch.where(masked, 0.0, constant)
    if not bool(found.isfinite().all()):
        raise UnsupportedError(f"puts NaN or infinity beside what depends on the input; {MASKS}")
    return found, masked


def check_finite(*values: Any) -> None:
    """Check that no tensor among the arguments of a rule has entries that are NaN or infinite.

    Raises:
        UnsupportedError: one has.
    """
    for value in values:
        if isinstance(value, list | tuple):
            check_finite(*value)
        elif isinstance(value, dict):
            check_finite(*value.values())
        elif isinstance(value, Moving):
            if value.masked is not None:
                raise UnsupportedError(f"computes with entries that are -inf; {MASKS}")
        elif isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            raise UnsupportedError(f"computes with a constant that is NaN or infinite; {MASKS}")


Rule = Callable[[Builder, tuple[Any, ...], dict[str, Any], Any], Any]
"""Rule of an operator: builder, arguments, options, and shape of the result (of each, if there are several)."""


def rearranged(
    build: Builder, operation: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any], shape: Any
) -> Any:
    """Write an operator that only moves entries: run it on their numbers, from 1 on; constants have negative ones."""
    moving: list[tuple[Moving, int]] = []
    constants: list[Tensor] = []
    sizes = [1, 1]  # the first free number, positive and negative

    def numbered(value: Any) -> Any:
        if isinstance(value, Moving):
            start = sizes[0]
            moving.append((value, start))
            sizes[0] += value.numel()
            return torch.arange(start, sizes[0], device=build.device, dtype=torch.float64).reshape(value.shape)
        if isinstance(value, Tensor) and value.is_floating_point():
            start = sizes[1]
            constants.append(value.to(torch.float64).flatten())
            sizes[1] += value.numel()
            numbers = -torch.arange(start, sizes[1], device=build.device, dtype=torch.float64)
            return numbers.reshape(value.shape)
        if isinstance(value, list | tuple):
            return type(value)(numbered(part) for part in value)
        return value

    result = operation(*(numbered(value) for value in args), **{key: numbered(value) for key, value in options.items()})
    if isinstance(result, list | tuple):
        return [_picked(build, part, moving, constants) for part in result]
    return _picked(build, result, moving, constants)


def _picked(build: Builder, result: Tensor, moving: Sequence[tuple[Moving, int]], constants: Sequence[Tensor]) -> Any:
    """Write a tensor of numbers of entries as the entries themselves."""
    numbers = result.to(torch.int64)
    flat = numbers.flatten()
    bias = None
    if bool((flat < 0).any()):
        table = torch.cat([torch.zeros(1, dtype=torch.float64, device=build.device), *constants])
        bias = table[(-flat).clamp(min=0)]
    parts = []
    for value, start in moving:
        index = torch.where((flat >= start) & (flat < start + value.numel()), flat - start, -1)
        if bool((index >= 0).any()):
            parts.append((value, index))
    if not parts:
        return torch.zeros(tuple(result.shape), dtype=torch.float64, device=build.device) + (
            0.0 if bias is None else bias.reshape(result.shape)
        )
    bias, masked = (None, None) if bias is None else unmasked(bias)
    masks = [value.masked[index.clamp(min=0)] & (index >= 0) for value, index in parts if value.masked is not None]
    first, *others = parts
    found = build.select(first[0], first[1], tuple(result.shape), bias)
    rest = [build.select(value, index, tuple(result.shape)) for value, index in others]
    return (build.total(found, *rest) if rest else found).hiding(masked, *masks)
