"""Table of torch's operators: each has a rule that writes it as affine maps, elementwise functions, products and sums.

A rule gets the builder, the operator's arguments, in which a value that depends on the input is a `Moving`, and the shape
of its result, and returns what the operator returns. A new layer is one entry of `RULES`, `FUNCTIONS`, `REARRANGING` or
`LINEAR`.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import scipy.sparse
import torch
from torch import Tensor

from certbench.errors import UnsupportedError
from certbench.networks import curves, gated, s_shaped
from certbench.networks import piecewise_linear as pieces
from certbench.networks.activations import Activation
from certbench.networks.graph import Affine, Elementwise, Input, Node, Product, Sum
from certbench.networks.image_maps import Convolution
from certbench.networks.maps import Dense, Map, Scale
from certbench.networks.probing import linear_map
from certbench.networks.structured_maps import Along, Select, Sparse, Transposed

aten: Any = torch.ops.aten
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Moving:
    """A tensor that depends on the input: a node of the graph, in a shape. The first axis is the batch's, of one."""

    node: int
    shape: Shape

    def view(self, shape: Sequence[int]) -> "Moving":
        """Return the same entries in another shape."""
        return Moving(self.node, tuple(shape))

    def numel(self) -> int:
        """Return the number of entries."""
        return math.prod(self.shape)


FULL = 64
"""Largest number of entries whose centring is one matrix; larger ones subtract their mean. A judgement: memory."""


class Builder:
    """The nodes so far. `origin` is what the next ones are said to come from."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.nodes: list[Node] = [Input((), math.prod(shape), "input")]
        self.origin = ""
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
        """Add a constant."""
        return self.affine(value, None, value.shape, self.flat(bias, value.shape))

    def scale(self, value: Moving, factor: Any, bias: Any = None) -> Moving:
        """Multiply by a constant, and add one."""
        shift = None if bias is None else self.flat(bias, value.shape)
        return self.affine(value, Scale(self.flat(factor, value.shape).clone()), value.shape, shift)

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
        return self.select(value, self.places(value).expand(tuple(shape)), shape)

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

    def larger(self, first: Moving, second: Moving) -> Moving:
        """Return the larger of two values, entry by entry: a + max(b - a, 0)."""
        return self.total(first, self.apply(pieces.RELU, self.difference(second, first)))

    def largest(self, value: Moving, windows: Tensor, shape: Sequence[int]) -> Moving:
        """Return the largest entry of each window: `windows` (members, outputs) holds places in the value.

        An increasing function before it comes after it: the maximum is the same, and there are fewer entries.
        """
        node = self.nodes[value.node]
        if isinstance(node, Elementwise) and increasing(node.function):
            before = Moving(node.sources[0], value.shape)
            return self.apply(node.function, self.largest(before, windows, shape))
        count = math.prod(shape)
        moved = self.select(value, windows, windows.shape)
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
        return moved.view(shape)

    def joined(self, values: Sequence[Moving], shape: Sequence[int]) -> Moving:
        """Put flat values one behind the other."""
        return rearranged(self, lambda parts: torch.cat([part.flatten() for part in parts]), (list(values),), {}, shape)


def increasing(function: Activation) -> bool:
    """Say whether a function is known to be nowhere decreasing."""
    if isinstance(function, pieces.PiecewiseLinear):
        return bool((function.slopes >= 0).all())
    rising = (s_shaped.SShaped, curves.Elu, curves.Softplus, curves.LogSigmoid, curves.Exp, curves.Log)
    return isinstance(function, rising)


Rule = Callable[[Builder, tuple[Any, ...], dict[str, Any], Any], Any]
"""Rule of an operator: builder, arguments, options, and shape of the result (of each, if there are several)."""


def rearranged(
    build: Builder, operation: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any], shape: Any
) -> Any:
    """Write an operator that only moves entries: it is run on their numbers, from 1 on; constants have negative ones."""
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
    first, *others = parts
    found = build.select(first[0], first[1], tuple(result.shape), bias)
    rest = [build.select(value, index, tuple(result.shape)) for value, index in others]
    return build.total(found, *rest) if rest else found


def _pad(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Any:
    value, pads, fill = args[0], args[1], args[2] if len(args) > 2 else options.get("value", 0.0)
    constant = torch.full((1,), float(fill or 0.0), dtype=torch.float64, device=build.device)

    def padded(numbers: Tensor, mark: Tensor) -> Tensor:
        return torch.nn.functional.pad(numbers, pads, value=float(mark) if fill else 0.0)

    return rearranged(build, padded, (value, constant), {}, shape)


# Sums and products


def _added(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any, sign: float = 1.0) -> Moving:
    factor = sign * options.get("alpha", 1)
    first, second = args
    if isinstance(first, Moving):
        first = build.expand(first, shape)
        if not isinstance(second, Moving):
            return build.shift(first, factor * build.flat(second, shape))
        second = build.expand(second, shape)
        return build.total(first, second if factor == 1 else build.scale(second, factor))
    second = build.expand(second, shape)
    if factor == 1:
        return build.shift(second, first)
    return build.scale(second, factor, first)


def _subtracted(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    return _added(build, args, options, shape, -1.0)


def _subtracted_from(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    return _added(build, (args[1], args[0]), options, shape, -1.0)


def _multiplied(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    first, second = args if isinstance(args[0], Moving) else (args[1], args[0])
    if isinstance(second, Moving):
        return build.product(build.expand(first, shape), build.expand(second, shape))
    return build.scale(build.expand(first, shape), second)


def _divided(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    if options.get("rounding_mode") is not None:
        raise UnsupportedError("rounds a quotient, which is not continuous")
    first, second = args
    if not isinstance(second, Moving):
        value = build.expand(first, shape)
        flat = build.flat(second, shape)
        return build.affine(value, Scale(torch.ones_like(flat) / flat), shape)
    inverse = build.expand(build.apply(curves.power(-1.0), second), shape)
    if isinstance(first, Moving):
        return build.product(build.expand(first, shape), inverse)
    return build.scale(inverse, first)


def _negated(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    return build.scale(args[0], -1.0)


# Matrices


def _matrix_product(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    """Multiply (.., m, k) by (.., k, n); a vector on the right counts as a column, and on the left as a row."""
    first, second = args
    if isinstance(first, Moving) and isinstance(second, Moving):
        return _moving_product(build, first, second, shape)
    if isinstance(first, Moving):
        weight = second[:, None] if second.dim() == 1 else second
        blocks = weight.transpose(-1, -2).reshape(-1, weight.shape[-1], weight.shape[-2])
        outer = first.numel() // (len(blocks) * first.shape[-1])
        return build.affine(first, _along(blocks, outer, 1), shape)
    weight = first[None] if first.dim() == 1 else first
    inner = 1 if len(second.shape) == 1 else second.shape[-1]
    blocks = weight.reshape(-1, *weight.shape[-2:])
    return build.affine(
        second, _along(blocks, second.numel() // (blocks.shape[0] * blocks.shape[2] * inner), inner), shape
    )


def _along(blocks: Tensor, outer: int, inner: int) -> Map:
    """Return matrices (blocks, out, in) along one axis, where `outer` places stand before it and `inner` behind."""
    if len(blocks) == outer == inner == 1:
        return Dense(blocks[0].contiguous())
    return Along(blocks.contiguous(), outer, inner)


def _moving_product(build: Builder, first: Moving, second: Moving, shape: Shape) -> Moving:
    """Multiply two matrices that both depend on the input: all products, and their sums."""
    a, b = build.places(first), build.places(second)
    a = a[None] if a.dim() == 1 else a
    b = b[:, None] if b.dim() == 1 else b
    a, b = torch.broadcast_tensors(a[..., :, :, None], b[..., None, :, :])  # (.., m, k, n)
    m, k, n = a.shape[-3:]
    parts = build.product(build.select(first, a, a.shape), build.select(second, b, b.shape))
    ones = torch.ones(1, 1, k, dtype=torch.float64, device=build.device)
    return build.affine(parts, _along(ones, parts.numel() // (k * n), n), shape)


def _with_bias(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    """Multiply matrices and add a bias: addmm, baddbmm, addmv."""
    bias, first, second = args
    product = _matrix_product(build, (first, second), {}, shape)
    alpha, beta = options.get("alpha", 1), options.get("beta", 1)
    node = build.nodes[-1]
    if not isinstance(bias, Moving) and alpha == beta == 1 and isinstance(node, Affine) and node.bias is None:
        build.nodes[-1] = Affine(node.sources, node.size, node.origin, node.map, build.flat(bias, shape))
        return product
    scaled = product if alpha == 1 else build.scale(product, alpha)
    if isinstance(bias, Moving):
        shift = build.expand(bias, shape)
        return build.total(scaled, shift if beta == 1 else build.scale(shift, beta))
    return build.shift(scaled, beta * bias)


def _dot(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    return _matrix_product(build, args, options, shape)


def _convolution(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    value, weight, bias, stride, padding, dilation, transposed, _, groups = args
    if not isinstance(value, Moving) or isinstance(weight, Moving) or isinstance(bias, Moving):
        raise UnsupportedError("convolves with a kernel that depends on the input")
    before, after = value.shape[1:], tuple(shape[1:])
    axes = len(after) - 1
    strides = [tuple(part) * (axes if len(part) == 1 else 1) for part in (stride, padding, dilation)]
    if transposed:
        part: Map = Transposed(Convolution(weight, after, before, *strides, groups))
    else:
        part = Convolution(weight, before, after, *strides, groups)
    return build.affine(
        value, part, shape, None if bias is None else bias.view(-1, *[1] * axes).expand(after).flatten()
    )


# Normalisation


def _batch_norm(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> list[Any]:
    value, weight, bias, mean, variance, *rest = args
    size = shape[0]
    training, eps = (rest[0], rest[2]) if len(rest) == 3 else (False, rest[-1])
    if training or mean is None:  # each channel by its own mean and variance: of the batch, or of the instance
        channels = value.shape[1]
        found = _standardised(build, value, channels, eps)
        return [_scaled_channels(build, found.view(size), weight, bias, size), None, None]
    scale = 1 / (variance + eps).sqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    height = shift.abs()  # what may cancel below
    if bias is not None:
        shift, height = shift + bias, height + bias.abs()
    ones = [1] * (len(size) - 2)
    scale, shift, height = (part.view(-1, *ones).expand(tuple(size[1:])).flatten() for part in (scale, shift, height))
    return [build.affine(value, Scale(scale, entry_roundings=8), size, shift, height), None, None]


def _standardised(build: Builder, value: Moving, rows: int, eps: float) -> Moving:
    """Subtract the mean of each row and divide by the root of its variance plus eps."""
    size = value.numel() // rows
    value = value.view((rows, size))
    if size <= FULL:
        centre = torch.eye(size, dtype=torch.float64, device=build.device) - 1 / size
        apart = build.affine(value, _along(centre[None], rows, 1), (rows, size))
    else:
        minus = torch.full((1, 1, size), -1 / size, dtype=torch.float64, device=build.device)
        apart = build.total(value, build.expand(build.affine(value, _along(minus, rows, 1), (rows, 1)), (rows, size)))
    return build.product(apart, _inverse_length(build, apart, rows, size, eps))


def _inverse_length(build: Builder, value: Moving, rows: int, size: int, eps: float) -> Moving:
    """Return 1 / sqrt(mean of squares + eps) of each row, repeated along it."""
    squares = build.apply(curves.power(2.0), value)
    mean = torch.full((1, 1, size), 1 / size, dtype=torch.float64, device=build.device)
    energy = build.affine(squares, _along(mean, rows, 1), (rows, 1), build.flat(eps, (rows, 1)))
    return build.expand(build.apply(curves.power(-0.5), energy), (rows, size))


def _scaled_channels(build: Builder, value: Moving, weight: Any, bias: Any, shape: Shape) -> Moving:
    ones = [1] * (len(shape) - 2)
    if weight is None and bias is None:
        return value
    factor = 1.0 if weight is None else weight.view(1, -1, *ones)
    return build.scale(value, factor, None if bias is None else bias.view(1, -1, *ones))


def _layer_norm(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> list[Any]:
    value, normalised, weight, bias, eps = args
    rows = value.numel() // math.prod(normalised)
    found = _standardised(build, value, rows, eps).view(shape[0])
    if weight is not None or bias is not None:
        found = build.scale(found, 1.0 if weight is None else weight, bias)
    return [found, None, None]


def _group_norm(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> list[Any]:
    value, weight, bias, _, _, _, groups, eps = args
    found = _standardised(build, value, groups, eps).view(shape[0])
    return [_scaled_channels(build, found, weight, bias, shape[0]), None, None]


def _rms_norm(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> list[Any]:
    value, normalised, weight, eps = args
    size = math.prod(normalised)
    rows = value.numel() // size
    flat = value.view((rows, size))
    eps = torch.finfo(torch.float64).eps if eps is None else eps
    found = build.product(flat, _inverse_length(build, flat, rows, size, eps)).view(shape[0])
    return [found if weight is None else build.scale(found, weight), None]


# Sums and maxima over axes


def _axes(value: Moving, dims: Any) -> list[int]:
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        return list(range(len(value.shape)))
    return [int(d) % len(value.shape) for d in (dims if isinstance(dims, list | tuple) else [dims])]


def _groups(value: Moving, axes: Sequence[int], device: torch.device) -> tuple[Tensor, Shape]:
    """Return the place in the result of each entry, where some axes are summed over, and the shape with these kept."""
    kept = tuple(1 if i in axes else n for i, n in enumerate(value.shape))
    return torch.arange(math.prod(kept), device=device).reshape(kept).expand(value.shape), kept


def _sum(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    groups, _ = _groups(args[0], _axes(args[0], args[1] if len(args) > 1 else None), build.device)
    return build.summed(args[0], groups, shape)


def _mean(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    groups, _ = _groups(args[0], _axes(args[0], args[1] if len(args) > 1 else None), build.device)
    return build.summed(args[0], groups, shape, math.prod(shape) / args[0].numel())


def _windows(value: Moving, axes: Sequence[int], device: torch.device) -> Tensor:
    """Return the places of the entries along some axes, as windows."""
    places = torch.arange(value.numel(), device=device).reshape(value.shape)
    kept = [i for i in range(len(value.shape)) if i not in axes]
    count = math.prod(value.shape[i] for i in axes)
    return places.permute(*axes, *kept).reshape(count, -1)


def _maximum(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    dims = args[1] if len(args) > 1 else options.get("dim")
    return build.largest(args[0], _windows(args[0], _axes(args[0], dims), build.device), shape)


def _minimum(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    flipped = build.scale(args[0], -1.0)
    return build.scale(_maximum(build, (flipped, *args[1:]), options, shape), -1.0)


def _maximum_along(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Any:
    """Return the largest entries along an axis and no places, or the largest entry of all."""
    return (
        [_maximum(build, args, options, shape[0]), None]
        if isinstance(shape, list)
        else _maximum(build, args, options, shape)
    )


def _minimum_along(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Any:
    return (
        [_minimum(build, args, options, shape[0]), None]
        if isinstance(shape, list)
        else _minimum(build, args, options, shape)
    )


def _variance(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Any:
    """Return the variance along some axes; with the mean if two are asked for."""
    value, axes = args[0], _axes(args[0], args[1] if len(args) > 1 else options.get("dim"))
    correction = options.get("correction", 1)
    groups, kept = _groups(value, axes, build.device)
    count = value.numel() // math.prod(kept)
    mean = build.summed(value, groups, kept, 1 / count)
    apart = build.difference(value, build.expand(mean, value.shape))
    squares = build.apply(curves.power(2.0), apart)
    factor = 1 / max(count - (1 if correction is None else correction), 0.0)
    if isinstance(shape, list):
        return [build.summed(squares, groups, shape[0], factor), mean.view(shape[1])]
    return build.summed(squares, groups, shape, factor)


def _all_multiplied(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    """Multiply the entries along some axes, two by two."""
    value = args[0]
    windows = _windows(value, _axes(value, args[1] if len(args) > 1 else None), build.device)
    found = build.select(value, windows[0], shape)
    for window in windows[1:]:
        found = build.product(found, build.select(value, window, shape))
    return found


def _larger(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any, sign: float = 1.0) -> Moving:
    """Return the larger (sign 1) or the smaller (sign -1) of two, of which one may be a constant."""
    first, second = args if isinstance(args[0], Moving) else (args[1], args[0])
    first = build.expand(first, shape)
    if isinstance(second, Moving):
        second = build.expand(second, shape)
        if sign > 0:
            return build.larger(first, second)
        return build.scale(build.larger(build.scale(first, -1.0), build.scale(second, -1.0)), -1.0)
    constant = build.flat(second, shape)
    apart = build.scale(first, sign, -sign * constant)
    return build.scale(build.apply(pieces.RELU, apart), sign, constant)


def _smaller(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    return _larger(build, args, options, shape, -1.0)


def _max_pool(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> list[Any]:
    """Find the window of each output by running the pooling's own geometry on places, axis by axis."""
    value, kernel = args[0], args[1]
    axes = len(shape[0]) - 2

    def option(at: int, default: Any) -> list[int]:
        given = args[at] if len(args) > at else default
        given = [given] if isinstance(given, int) else list(given)
        return given * axes if len(given) == 1 else given

    kernel = option(1, kernel)
    stride, padding, dilation = option(2, []) or kernel, option(3, 0), option(4, 1)
    windows = _sliding(value, shape[0], kernel, stride, padding, dilation, build.device)
    return [build.largest(value, windows, shape[0]), None]


def _sliding(
    value: Moving,
    shape: Shape,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    device: torch.device,
) -> Tensor:
    """Return the windows of a pooling. A place outside the map is replaced by one of the window inside."""

    def taps(axis: int) -> Tensor:
        n, outputs = value.shape[2 + axis], shape[2 + axis]
        first = torch.arange(outputs, device=device) * stride[axis] - padding[axis]
        found = first + torch.arange(kernel[axis], device=device)[:, None] * dilation[axis]
        inside = (found >= 0) & (found < n)
        return torch.where(inside, found, torch.where(inside, found, -1).amax(dim=0))

    return _pooled(value, [taps(axis) for axis in range(len(kernel))], device)


def _pooled(value: Moving, taps: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return windows as places, from the members (members, outputs) of the windows along each axis."""
    places = torch.arange(value.numel(), device=device).reshape(value.shape)
    for members in taps:  # the first axis left is the third; what is done goes behind the others
        places = places.movedim(2, 0)[members].movedim((0, 1), (-2, -1))
    order = [*range(2, places.dim(), 2), 0, 1, *range(3, places.dim(), 2)]
    return places.permute(*order).reshape(math.prod(len(members) for members in taps), -1)


def _adaptive_max_pool(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> list[Any]:
    value, out = args[0], shape[0]
    taps = []
    for n, outputs in zip(value.shape[2:], out[2:], strict=True):
        at = torch.arange(outputs, device=build.device)
        first, end = at * n // outputs, (at * n + n + outputs - 1) // outputs
        members = first + torch.arange(int((end - first).max()), device=build.device)[:, None]
        taps.append(torch.minimum(members, end - 1))
    return [build.largest(value, _pooled(value, taps, build.device), out), None]


def _average_pool(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    value, kernel, stride, padding, ceil, count_padding, divisor = (
        *args,
        *([], [0], False, True, None)[len(args) - 2 :],
    )
    kernel, stride, padding = ([*part] * (2 if len(part) == 1 else 1) for part in (kernel, stride or kernel, padding))
    if ceil or divisor is not None or (any(padding) and not count_padding):  # unequal weights
        return _linear(build, aten.avg_pool2d.default, args, options, shape)
    before, after = value.shape[1:], tuple(shape[1:])
    weight = torch.full((before[0], 1, *kernel), 1 / math.prod(kernel), dtype=torch.float64, device=build.device)
    part = Convolution(weight, before, after, tuple(stride), tuple(padding), groups=before[0])
    return build.affine(value, part, shape)


def _linear(build: Builder, operation: Any, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    """Write an operator that is linear in its first argument as a matrix."""
    value, name = args[0], packet(operation)
    if name in CHANNELWISE:
        channels = math.prod(value.shape[:2])

        def one(h: Tensor) -> Tensor:
            found: Tensor = operation(h[None, None], *args[1:], **options)[0, 0]
            return found

        part = linear_map(one, value.shape[2:], tuple(shape[2:]), value.numel() // channels, channels, build.device)
        return build.affine(value, part, shape)

    def run(h: Tensor) -> Tensor:
        found: Tensor = operation(h, *args[1:], **options)
        return found

    return build.affine(value, linear_map(run, value.shape, tuple(shape), value.numel(), device=build.device), shape)


# Softmax and other functions of several entries


def _differences(build: Builder, value: Moving, dim: int) -> tuple[Moving, Moving, int]:
    """Return x_j - x_i for all pairs i != j along an axis, (rows, n, n - 1), and the value with that axis last."""
    axis = dim % len(value.shape)
    moved = tuple(n for i, n in enumerate(value.shape) if i != axis) + (value.shape[axis],)
    last = build.select(value, build.places(value).movedim(axis, -1), moved)
    n = value.shape[axis]
    rows = last.numel() // n
    places = torch.arange(last.numel(), device=build.device).reshape(rows, n)
    i, j = torch.nonzero(~torch.eye(n, dtype=torch.bool, device=build.device), as_tuple=True)
    own, other = places[:, i].flatten(), places[:, j].flatten()
    at = torch.arange(len(own)).repeat(2)
    ones = torch.ones(len(own), dtype=torch.float64)
    part = build.sparse(at, torch.cat([other, own]), torch.cat([ones, -ones]), len(own), last.numel())
    return build.affine(last, part, (rows, n, n - 1)), last, axis


def _softmax(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any, log: bool = False) -> Moving:
    r"""Write $\exp x_i / \sum_j \exp x_j$ as $1 / (1 + \sum_{j \ne i} \exp(x_j - x_i))$: differences cancel what is shared."""
    value, dim = args[0], args[1]
    apart, last, axis = _differences(build, value, dim)
    rows, n, _ = apart.shape
    if n == 1:
        return build.scale(value, 0.0, 0.0 if log else 1.0)
    if n == 2:  # a function of one difference
        found = build.apply(curves.LogSigmoid() if log else s_shaped.Sigmoid(), build.scale(apart, -1.0))
    else:
        ones = torch.ones(1, 1, n - 1, dtype=torch.float64, device=build.device)
        sums = build.affine(
            build.apply(curves.Exp(), apart), _along(ones, rows * n, 1), (rows, n), build.flat(1.0, (rows, n))
        )
        found = build.scale(build.apply(curves.Log(), sums), -1.0) if log else build.apply(curves.power(-1.0), sums)
    found = found.view(last.shape)
    return build.select(found, build.places(found).movedim(-1, axis), shape)


def _log_softmax(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    return _softmax(build, args, options, shape, log=True)


def _logsumexp(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    """Write the logarithm of a sum of exponentials as x_0 - log softmax_0 along a single axis."""
    value = args[0]
    (axis,) = _axes(value, args[1])
    logs = _log_softmax(build, (value, axis), {}, value.shape)
    first = build.places(value).select(axis, 0)
    return build.difference(build.select(value, first, shape), build.select(logs, first, shape))


def _norm(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    value, order = args[0], float(args[1]) if len(args) > 1 else 2.0
    axes = _axes(value, args[2] if len(args) > 2 else None)
    groups, _ = _groups(value, axes, build.device)
    if order == 2:
        return build.apply(curves.power(0.5), build.summed(build.apply(curves.power(2.0), value), groups, shape))
    moduli = build.apply(pieces.ABS, value)
    if order == 1:
        return build.summed(moduli, groups, shape)
    if order == math.inf:
        return build.largest(moduli, _windows(value, axes, build.device), shape)
    raise UnsupportedError(f"has no rule for the {order:g}-norm")


def _power(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    value, exponent = args
    if isinstance(exponent, Moving):
        if isinstance(value, Moving) or isinstance(value, Tensor) or not value > 0:
            raise UnsupportedError(
                "has no rule for powers whose exponent depends on the input, but of a positive number"
            )
        return build.apply(curves.Exp(), build.scale(exponent, math.log(value)))
    if isinstance(exponent, Tensor):
        raise UnsupportedError("has no rule for an exponent that is a tensor")
    return build.apply(curves.power(float(exponent)), value)


def _expm1(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    return build.shift(build.apply(curves.Exp(), args[0]), -1.0)


def _log1p(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    return build.apply(curves.Log(), build.shift(args[0], 1.0))


def _threshold(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    value, threshold, instead = args
    if threshold != instead:
        raise UnsupportedError("jumps at its threshold; no linear bound follows a jump, smoothing does")
    return _larger(build, (value, threshold), {}, shape)


def _copied(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Any:
    """Return the second value in the place of the first."""
    if isinstance(args[1], Moving):
        return build.expand(args[1], shape)
    return torch.as_tensor(args[1], dtype=torch.float64, device=build.device).expand(tuple(shape)).clone()


def _random_slope(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Any:
    """In eval mode the slope of RReLU is the mean of its ends."""
    value, _, low, high, training = (*args, *(1 / 8, 1 / 3, False)[len(args) - 2 :])[:5]
    if training:
        raise UnsupportedError("draws random slopes in training mode")
    found = build.apply(pieces.leaky_relu((low + high) / 2), value)
    return [found, None] if isinstance(shape, list) else found


def _where(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Any:
    condition, yes, no = args
    if isinstance(condition, Moving):
        raise UnsupportedError("chooses by a condition that depends on the input")
    mask = condition.expand(tuple(shape))

    def chosen(first: Any, second: Any) -> Tensor:
        return torch.where(mask, first, second)

    def tensor(value: Any) -> Any:
        return value if isinstance(value, Moving) else torch.as_tensor(value, dtype=torch.float64, device=build.device)

    return rearranged(build, chosen, (tensor(yes), tensor(no)), {}, shape)


def _item(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Any:
    return args[0][args[1]]


def _same(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    return args[0].view(shape)


def _log_sigmoid(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> list[Any]:
    return [build.apply(curves.LogSigmoid(), args[0]), None]


def _prelu(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    value, weight = args
    return build.apply(pieces.prelu(build.flat(weight, shape)), value)


def _clamp(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    value = args[0]
    low = args[1] if len(args) > 1 else options.get("min")
    high = args[2] if len(args) > 2 else options.get("max")
    if any(isinstance(end, Tensor | Moving) for end in (low, high)):
        value = value if low is None else _larger(build, (value, low), {}, shape)
        return value if high is None else _smaller(build, (value, high), {}, shape)
    return build.apply(pieces.clamp(-math.inf if low is None else low, math.inf if high is None else high), value)


FUNCTIONS: Mapping[Any, Callable[..., Activation]] = {
    aten.relu: lambda: pieces.RELU,
    aten.leaky_relu: lambda slope=0.01: pieces.leaky_relu(slope),
    aten.hardtanh: lambda low=-1.0, high=1.0: pieces.clamp(low, high),
    aten.clamp_min: lambda low: pieces.clamp(low, math.inf),
    aten.clamp_max: lambda high: pieces.clamp(-math.inf, high),
    aten.abs: lambda: pieces.ABS,
    aten.elu: lambda alpha=1.0, scale=1.0, input_scale=1.0: curves.Elu(alpha, scale, input_scale),
    aten.softplus: lambda beta=1.0, threshold=20.0: curves.Softplus(beta, threshold),
    aten.sigmoid: lambda: s_shaped.Sigmoid(),
    aten.tanh: lambda: s_shaped.Tanh(),
    aten.gelu: lambda approximate="none": gated.GeluTanh() if approximate == "tanh" else gated.Gelu(),
    aten.silu: lambda: gated.Silu(),
    aten.mish: lambda: gated.Mish(),
    aten.hardswish: lambda: gated.Hardswish(),
    aten.hardsigmoid: lambda: pieces.HARDSIGMOID,
    aten.erf: lambda: s_shaped.Erf(),
    aten.exp: lambda: curves.Exp(),
    aten.log: lambda: curves.Log(),
    aten.sqrt: lambda: curves.power(0.5),
    aten.rsqrt: lambda: curves.power(-0.5),
    aten.reciprocal: lambda: curves.power(-1.0),
    aten.sin: lambda: curves.Sine(),
    aten.cos: lambda: curves.Sine(quarter=True),
    aten.atan: lambda: s_shaped.Atan(),
    aten.celu: lambda alpha=1.0: curves.Elu(alpha, 1.0, 1 / alpha),
    aten.square: lambda: curves.power(2.0),
    aten.softshrink: lambda width=0.5: pieces.piecewise_linear([-width, width], [1.0, 0.0, 1.0], 0.0, "Softshrink"),
}
"""Functions of each entry, made from the operator's other arguments."""


RULES: Mapping[Any, Rule] = {
    operator.getitem: _item,
    aten.add: _added,
    aten.sub: _subtracted,
    aten.rsub: _subtracted_from,
    aten.mul: _multiplied,
    aten.div: _divided,
    aten.neg: _negated,
    aten.mm: _matrix_product,
    aten.bmm: _matrix_product,
    aten.mv: _matrix_product,
    aten.dot: _dot,
    aten.addmm: _with_bias,
    aten.baddbmm: _with_bias,
    aten.addmv: _with_bias,
    aten.convolution: _convolution,
    aten.native_batch_norm: _batch_norm,
    aten._native_batch_norm_legit: _batch_norm,
    aten._native_batch_norm_legit_no_training: _batch_norm,
    aten.native_layer_norm: _layer_norm,
    aten.native_group_norm: _group_norm,
    aten._fused_rms_norm: _rms_norm,
    aten.sum: _sum,
    aten.mean: _mean,
    aten.amax: _maximum,
    aten.amin: _minimum,
    aten.max: _maximum_along,
    aten.min: _minimum_along,
    aten.maximum: _larger,
    aten.minimum: _smaller,
    aten.max_pool2d_with_indices: _max_pool,
    aten.max_pool3d_with_indices: _max_pool,
    aten.adaptive_max_pool2d: _adaptive_max_pool,
    aten.adaptive_max_pool3d: _adaptive_max_pool,
    aten.avg_pool2d: _average_pool,
    aten._softmax: _softmax,
    aten._safe_softmax: _softmax,
    aten._log_softmax: _log_softmax,
    aten.logsumexp: _logsumexp,
    aten.linalg_vector_norm: _norm,
    aten.pow: _power,
    aten.expm1: _expm1,
    aten.log1p: _log1p,
    aten.threshold: _threshold,
    aten.copy: _copied,
    aten.rrelu_with_noise_functional: _random_slope,
    aten.rrelu_with_noise: _random_slope,
    aten.var: _variance,
    aten.var_mean: _variance,
    aten.prod: _all_multiplied,
    aten.where: _where,
    aten.clamp: _clamp,
    aten._prelu_kernel: _prelu,
    aten.log_sigmoid_forward: _log_sigmoid,
    aten.constant_pad_nd: _pad,
    aten.view: _same,
    aten.view_copy: _same,
    aten._unsafe_view: _same,
    aten.reshape: _same,
    aten._reshape_copy: _same,
    aten.unsqueeze_copy: _same,
    aten.squeeze_copy: _same,
    aten.unsqueeze: _same,
    aten.squeeze: _same,
    aten.clone: _same,
    aten.detach_copy: _same,
    aten.detach: _same,
    aten.alias_copy: _same,
    aten.alias: _same,
    aten.lift_fresh_copy: _same,
    aten.contiguous: _same,
}
"""Rules of operators, by their name in torch."""


REARRANGING = frozenset({
    aten.permute, aten.permute_copy, aten.transpose, aten.transpose_copy, aten.t, aten.t_copy,
    aten.expand, aten.expand_copy, aten.slice, aten.slice_copy, aten.select, aten.select_copy,
    aten.cat, aten.stack, aten.split, aten.split_copy, aten.split_with_sizes, aten.split_with_sizes_copy,
    aten.unsafe_split, aten.unsafe_split_with_sizes, aten.chunk, aten.unsafe_chunk, aten.unbind, aten.unbind_copy,
    aten.flip, aten.roll, aten.index_select, aten.index, aten.gather, aten.repeat, aten.tile,
    aten.reflection_pad1d, aten.reflection_pad2d, aten.reflection_pad3d,
    aten.replication_pad1d, aten.replication_pad2d, aten.replication_pad3d,
    aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle, aten.native_channel_shuffle,
    aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d,
    aten._upsample_nearest_exact1d, aten._upsample_nearest_exact2d, aten._upsample_nearest_exact3d,
    aten.unfold, aten.unfold_copy, aten.im2col, aten.diagonal, aten.diagonal_copy, aten.tril, aten.triu,
    aten.as_strided, aten.as_strided_copy, aten.slice_scatter, aten.select_scatter, aten.diagonal_scatter,
    aten.index_put, aten.movedim, aten._unsafe_index,
})  # fmt: skip
"""Operators that only move entries, and put constants between them."""


CHANNELWISE = frozenset({
    aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d, aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d,
    aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_bicubic2d, aten.upsample_trilinear3d,
})  # fmt: skip
"""Linear operators that do the same to every channel, apart from the others."""


LINEAR = CHANNELWISE | {aten.cumsum, aten.col2im}
"""Operators that are linear in their first argument, and not common enough for a rule; they become sparse matrices."""


JUMPING = frozenset({
    aten.sign, aten.sgn, aten.round, aten.floor, aten.ceil, aten.trunc, aten.frac, aten.heaviside, aten.hardshrink,
    aten.gt, aten.ge, aten.lt, aten.le, aten.eq, aten.ne, aten.argmax, aten.argmin, aten.topk, aten.sort, aten.argsort,
    aten.bernoulli, aten.fmod, aten.remainder,
})  # fmt: skip
"""Operators that jump, or choose by comparing what depends on the input; no linear bound follows them."""


SHAPES = frozenset({
    aten.full_like, aten.zeros_like, aten.ones_like, aten.empty_like, aten.new_zeros, aten.new_ones, aten.new_full,
    aten.new_empty,
})  # fmt: skip
"""Operators that look at the shape of their first argument alone, and make a constant."""


EXACT = REARRANGING | SHAPES | {
    aten.zeros, aten.ones, aten.full, aten.arange, aten.scalar_tensor, aten.empty, aten.eye,
    *(name for name, rule in RULES.items() if rule in (_same, _item)),
}  # fmt: skip
"""Operators that make no rounding errors."""


def packet(target: Any) -> Any:
    """Return an operator without its overload, as the tables name it."""
    return getattr(target, "overloadpacket", target)


def known(target: Any) -> bool:
    """Say whether the tables know an operator."""
    name = packet(target)
    return any(name in table for table in (RULES, FUNCTIONS, REARRANGING, LINEAR, JUMPING, SHAPES))


def write(build: Builder, target: Any, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Any:
    """Write an operator as nodes, and return its result.

    Raises:
        UnsupportedError: no table knows it, or its rule does not know its options.
    """
    name = packet(target)
    if name in RULES:
        return RULES[name](build, args, options, shape)
    if name in FUNCTIONS:
        return build.apply(FUNCTIONS[name](*args[1:], **options), args[0])
    if name in REARRANGING:
        return rearranged(build, target, args, options, shape)
    if name in LINEAR:
        return _linear(build, target, args, options, shape)
    if name in SHAPES:
        zeros = torch.zeros(args[0].shape, dtype=torch.float64, device=build.device)
        return target(zeros, *args[1:], **options)
    if name in JUMPING:
        raise UnsupportedError(
            f"{name} jumps, or compares what depends on the input; smoothing can certify such modules"
        )
    raise UnsupportedError(f"{name} is not known here; smoothing can certify such modules")


def keeps_order(target: Any, args: tuple[Any, ...], values: Mapping[Any, Any]) -> bool:
    """Say whether an operator on logits (1, classes) is a softmax over the classes, or an increasing function of each.

    A function that is constant somewhere (ReLU, a clamp) is none: it makes ties.
    """
    value, rest, name = values.get(args[0]), args[1:], packet(target)
    if not isinstance(value, Moving) or len(value.shape) != 2:
        return False
    if name in (aten._softmax, aten._log_softmax, aten._safe_softmax):
        return rest[0] in (1, -1)
    if name in (aten.mul, aten.div):
        return isinstance(rest[0], int | float) and 0 < rest[0] < math.inf
    if name in (aten.add, aten.sub):
        return isinstance(rest[0], int | float) and math.isfinite(rest[0]) and len(rest) == 1
    if name in (aten.clone, aten.detach_copy, aten.detach, aten.alias, aten.alias_copy):
        return True
    return name in (aten.sigmoid, aten.tanh, aten.softplus, aten.atan, aten.exp, aten.erf)
