"""Shapes, moving of entries, constants, sums and maxima over axes."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from certbench.errors import UnsupportedError
from certbench.formats.onnx.operators.base import Operator
from certbench.formats.onnx.operators.matrices import around
from certbench.formats.onnx.operators.types import TYPES


def reshape(x: Any, target: Any = None, *, shape: Any = None, allowzero: int = 0) -> Any:
    """Reshape; 0 keeps the size of an axis, and -1 stands for the size that is left."""
    target = shape if target is None else target
    return x.reshape([x.shape[at] if n == 0 and not allowzero else n for at, n in enumerate(target)])


def flatten(x: Any, axis: int = 1) -> Any:
    """Make a matrix: the axes before `axis` are its rows."""
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1 and x.dim() > 1:
        return torch.flatten(x, 1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def transpose(x: Any, perm: Any = None) -> Any:
    """Permute axes; they are reversed where no order is given."""
    return x.permute(*(range(x.dim())[::-1] if perm is None else perm))


def squeeze(x: Any, chosen: Any = None, *, axes: Any = None) -> Any:
    """Remove axes of length 1."""
    chosen = axes if chosen is None else chosen
    drop = {axis % x.dim() for axis in chosen}
    if any(x.shape[axis] != 1 for axis in drop):
        raise UnsupportedError(f"removes an axis that is longer than 1, of the shape {tuple(x.shape)}")
    return x.reshape([n for axis, n in enumerate(x.shape) if axis not in drop])


def _all_of_length_1(given: list[Any], options: dict[str, Any], shown: Callable[[Any], Any]) -> Any:
    """Name the axes that a squeeze removes, where the file leaves that open."""
    if len(given) < 2 and options.get("axes") is None:
        options = {**options, "axes": tuple(axis for axis, n in enumerate(shown(given[0]).shape) if n == 1)}
    return given, options


def unsqueeze(x: Any, chosen: Any = None, *, axes: Any = None) -> Any:
    """Insert axes of length 1."""
    chosen = axes if chosen is None else chosen
    rank = x.dim() + len(chosen)
    places = {axis % rank for axis in chosen}
    sizes = iter(x.shape)
    return x.reshape([1 if axis in places else next(sizes) for axis in range(rank)])


def concat(*parts: Any, axis: int = 1) -> Any:
    """Put tensors one behind another."""
    return torch.cat(parts, axis)


def split(x: Any, sizes: Any = None, *, results: int, axis: int = 0, split: Any = None, num_outputs: Any = None) -> Any:
    """Split along an axis; in equal parts where no sizes are given, of which the last may be smaller."""
    sizes = split if sizes is None else sizes
    if sizes is None:
        part = math.ceil(x.shape[axis] / (num_outputs or results))
        sizes = [min(part, x.shape[axis] - at * part) for at in range(num_outputs or results)]
    return torch.split(x, [*sizes], axis)


def cut(
    x: Any,
    first: Any = None,
    last: Any = None,
    along: Any = None,
    steps: Any = None,
    *,
    starts: Any = None,
    ends: Any = None,
    axes: Any = None,
) -> Any:
    """Slice along some axes; before version 10 the numbers are attributes."""
    starts, ends, axes = (
        starts if first is None else first,
        ends if last is None else last,
        axes if along is None else along,
    )
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = axis % x.dim()
        start = max(start, -x.shape[axis]) if step < 0 else start  # ONNX then begins at the first entry
        kept = range(x.shape[axis])[slice(start, end, step)]
        if step < 0:
            kept = kept[::-1]
        low, high = (kept[0], kept[-1] + 1) if len(kept) else (0, 0)
        x = x[(slice(None),) * axis + (slice(low, high, abs(step)),)]
        x = x.flip(axis) if step < 0 else x
    return x


def gather(x: Any, indices: Any, *, axis: int = 0) -> Any:
    """Take entries along an axis."""
    axis = axis % x.dim()
    if not isinstance(indices, Tensor):
        return x.select(axis, indices)
    indices = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    found = x.index_select(axis, indices.reshape(-1))
    return found.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def gather_elements(x: Any, indices: Any, *, axis: int = 0) -> Any:
    """Take an entry along an axis for each place."""
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices).long())


def expand(x: Any, shape: Any) -> Any:
    """Broadcast to a shape, in both directions."""
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(shape)))


def tile(x: Any, repeats: Any, axis: Any = None) -> Any:
    """Repeat along the axes."""
    if axis is not None:
        repeats = [repeats[0] if at == axis[0] else 1 for at in range(x.dim())]
    return x.repeat(*repeats)


PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
"""Ways of padding, and what torch calls them."""


def pad(
    x: Any,
    paddings: Any = None,
    constant: Any = None,
    axes: Any = None,
    *,
    mode: str = "constant",
    pads: Any = None,
    value: float = 0.0,
) -> Any:
    """Pad, or cut where a number is negative; before version 11 the numbers are attributes."""
    given, fill = pads if paddings is None else paddings, value if constant is None else constant
    before, after, half = [0] * x.dim(), [0] * x.dim(), len(given) // 2
    for axis, first, last in zip(range(x.dim()) if axes is None else axes, given[:half], given[half:], strict=True):
        before[axis % x.dim()], after[axis % x.dim()] = first, last
    if mode == "constant":
        return functional.pad(x, around(before, after), value=fill)
    if mode not in PAD_MODES or any(before[:2] + after[:2]) or min(before + after) < 0:
        raise UnsupportedError(f"padding by {mode!r} is known for the axes of images alone, and by numbers from 0 on")
    return functional.pad(x, around(before[2:], after[2:]), mode=PAD_MODES[mode])


def depth_to_space(x: Any, *, blocksize: int, mode: str = "DCR") -> Any:
    """Move channels to blocks of pixels."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "DCR":
        return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)
    return functional.pixel_shuffle(x, b)


def space_to_depth(x: Any, *, blocksize: int) -> Any:
    """Move blocks of pixels to channels."""
    n, c, h, w = x.shape
    b = blocksize
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


def shape_of(x: Any, start: int = 0, end: int | None = None) -> Any:
    """Return the shape, or a part of it."""
    return torch.tensor([*x.shape][start:end], dtype=torch.int64)


def size_of(x: Any) -> Any:
    """Return the number of entries."""
    return torch.tensor(math.prod(x.shape), dtype=torch.int64)


def constant(
    *,
    value: Any = None,
    value_float: Any = None,
    value_floats: Any = None,
    value_int: Any = None,
    value_ints: Any = None,
) -> Any:
    """Return a constant."""
    if value is not None:
        return value
    if value_float is not None or value_floats is not None:
        return torch.tensor(value_float if value_floats is None else value_floats, dtype=torch.float32)
    return torch.tensor(value_int if value_ints is None else value_ints, dtype=torch.int64)


def constant_of_shape(shape: Any, *, value: Any = None) -> Any:
    """Return a tensor of one number."""
    one = torch.zeros(1) if value is None else value
    return one.reshape(()).expand(tuple(shape)).clone()


def counted(start: Any, limit: Any, delta: Any) -> Any:
    """Return numbers at equal distances."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def one_hot(indices: Any, depth: Any, values: Any, *, axis: int = -1) -> Any:
    """Return vectors with one entry set."""
    n = int(depth.reshape(()).item())
    found = torch.arange(n) == (indices.long() % n).unsqueeze(-1)
    return torch.where(found, values[1], values[0]).movedim(-1, axis)


def eye_like(x: Any, *, dtype: int | None = None, k: int = 0) -> Any:
    """Return a matrix with ones on a diagonal."""
    rows, columns = x.shape
    found = (torch.arange(columns)[None] - torch.arange(rows)[:, None]) == k
    return found.to(x.dtype if dtype is None else TYPES[dtype])


def triangle(x: Any, k: Any = None, *, upper: int = 1) -> Any:
    """Keep the entries above or below a diagonal."""
    diagonal = 0 if k is None else k[0] if isinstance(k, tuple) else k
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


def running_sum(x: Any, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Any:
    """Sum along an axis up to each place."""
    axis = axis[0] if isinstance(axis, tuple) else axis
    found = torch.cumsum(x.flip(axis), axis).flip(axis) if reverse else torch.cumsum(x, axis)
    return found - x if exclusive else found


def positions(x: Any) -> Any:
    """Return where a constant is not 0."""
    return torch.nonzero(x).t().contiguous()


def best(x: Any, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Any:
    """Return the place of the largest entry."""
    if select_last_index:
        return x.shape[axis] - 1 - torch.argmax(x.flip(axis), axis, keepdim=bool(keepdims))
    return torch.argmax(x, axis, keepdim=bool(keepdims))


def worst(x: Any, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Any:
    """Return the place of the smallest entry."""
    return best(-x, axis=axis, keepdims=keepdims, select_last_index=select_last_index)


def _reduced(x: Any, chosen: Any, axes: Any, empty: int, keepdims: int, function: Callable[..., Any]) -> Any:
    chosen = axes if chosen is None else chosen
    if not chosen and empty:
        return x
    dims = [axis % x.dim() for axis in chosen] if chosen else [*range(x.dim())]
    return function(x, dims, keepdim=bool(keepdims)) if dims else x


def summed(x: Any, chosen: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
    """Sum over axes."""
    return _reduced(x, chosen, axes, noop_with_empty_axes, keepdims, torch.sum)


def mean(x: Any, chosen: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
    """Take the mean over axes."""
    return _reduced(x, chosen, axes, noop_with_empty_axes, keepdims, torch.mean)


def maximum(x: Any, chosen: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
    """Take the maximum over axes."""
    return _reduced(x, chosen, axes, noop_with_empty_axes, keepdims, torch.amax)


def minimum(x: Any, chosen: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
    """Take the minimum over axes."""
    return _reduced(x, chosen, axes, noop_with_empty_axes, keepdims, torch.amin)


def product(x: Any, chosen: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
    """Multiply over axes."""

    def multiplied(values: Any, dims: list[int], keepdim: bool) -> Any:
        for dim in sorted(dims, reverse=True):
            values = torch.prod(values, dim, keepdim=keepdim)
        return values

    return _reduced(x, chosen, axes, noop_with_empty_axes, keepdims, multiplied)


def moduli(x: Any, chosen: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
    """Sum moduli over axes."""
    return summed(x.abs(), chosen, axes=axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes)


def length(x: Any, chosen: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
    """Take the Euclidean norm over axes."""
    return squares(x, chosen, axes=axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes).sqrt()


def squares(x: Any, chosen: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
    """Sum squares over axes."""
    return summed(x * x, chosen, axes=axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes)


def log_sum(x: Any, chosen: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
    """Take the logarithm of a sum over axes."""
    return summed(x, chosen, axes=axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes).log()


def log_sum_exp(
    x: Any, chosen: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Any:
    """Take the logarithm of a sum of exponentials over axes."""
    return _reduced(x, chosen, axes, noop_with_empty_axes, keepdims, torch.logsumexp)


REDUCTIONS = {
    "ReduceSum": summed, "ReduceMean": mean, "ReduceMax": maximum, "ReduceMin": minimum, "ReduceProd": product,
    "ReduceL1": moduli, "ReduceL2": length, "ReduceSumSquare": squares, "ReduceLogSum": log_sum,
    "ReduceLogSumExp": log_sum_exp,
}  # fmt: skip
"""Reductions over axes, which are an attribute or an operand."""

TABLE: dict[tuple[str, str], Operator] = {
    ("", "Reshape"): Operator(reshape, static=(1,), ignored=("consumed_inputs",)),
    ("", "Flatten"): Operator(flatten),
    ("", "Transpose"): Operator(transpose),
    ("", "Squeeze"): Operator(squeeze, static=(1,), settled=_all_of_length_1),
    ("", "Unsqueeze"): Operator(unsqueeze, static=(1,)),
    ("", "Concat"): Operator(concat),
    ("", "Split"): Operator(split, static=(1,)),
    ("", "Slice"): Operator(cut, static=(1, 2, 3, 4)),
    ("", "Gather"): Operator(gather, numbers=True),
    ("", "GatherElements"): Operator(gather_elements),
    ("", "Expand"): Operator(expand, static=(1,)),
    ("", "Tile"): Operator(tile, static=(1, 2)),
    ("", "Pad"): Operator(pad, static=(1, 2, 3)),
    ("", "DepthToSpace"): Operator(depth_to_space),
    ("", "SpaceToDepth"): Operator(space_to_depth),
    ("", "Shape"): Operator(shape_of, shape_alone=True),
    ("", "Size"): Operator(size_of, shape_alone=True),
    ("", "Constant"): Operator(constant),
    ("", "ConstantOfShape"): Operator(constant_of_shape, static=(0,)),
    ("", "Range"): Operator(counted),
    ("", "OneHot"): Operator(one_hot),
    ("", "EyeLike"): Operator(eye_like, shape_alone=True),
    ("", "Trilu"): Operator(triangle, static=(1,)),
    ("", "CumSum"): Operator(running_sum, static=(1,)),
    ("", "NonZero"): Operator(positions),
    ("", "ArgMax"): Operator(best),
    ("", "ArgMin"): Operator(worst),
    **{("", name): Operator(function, static=(1,)) for name, function in REDUCTIONS.items()},
}
"""Operators of this file, by their domain and name."""
