"""Rules for sums, means and maxima over axes and windows, and for other linear operators."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from certbench.networks.image_maps import Convolution
from certbench.networks.operators.builder import Builder, Moving, Rule, Shape, aten, packet
from certbench.networks.probing import linear_map


def axes_of(value: Moving, dims: Any) -> list[int]:
    """Return axes as numbers from 0 on; all of them for None."""
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        return list(range(len(value.shape)))
    return [int(d) % len(value.shape) for d in (dims if isinstance(dims, list | tuple) else [dims])]


def groups_of(value: Moving, axes: Sequence[int], device: torch.device) -> tuple[Tensor, Shape]:
    """Return the place in the result of each entry, where some axes are summed over, and the shape with these kept."""
    kept = tuple(1 if i in axes else n for i, n in enumerate(value.shape))
    return torch.arange(math.prod(kept), device=device).reshape(kept).expand(value.shape), kept


def _sum(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    groups, _ = groups_of(args[0], axes_of(args[0], args[1] if len(args) > 1 else None), build.device)
    return build.summed(args[0], groups, shape)


def _mean(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    groups, _ = groups_of(args[0], axes_of(args[0], args[1] if len(args) > 1 else None), build.device)
    return build.summed(args[0], groups, shape, math.prod(shape) / args[0].numel())


def windows_of(value: Moving, axes: Sequence[int], device: torch.device) -> Tensor:
    """Return the places of the entries along some axes, as windows."""
    places = torch.arange(value.numel(), device=device).reshape(value.shape)
    kept = [i for i in range(len(value.shape)) if i not in axes]
    count = math.prod(value.shape[i] for i in axes)
    return places.permute(*axes, *kept).reshape(count, -1)


def _maximum(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    dims = args[1] if len(args) > 1 else options.get("dim")
    return build.largest(args[0], windows_of(args[0], axes_of(args[0], dims), build.device), shape)


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


def _all_multiplied(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    """Multiply the entries along some axes, two by two."""
    value = args[0]
    windows = windows_of(value, axes_of(value, args[1] if len(args) > 1 else None), build.device)
    found = build.select(value, windows[0], shape)
    for window in windows[1:]:
        found = build.product(found, build.select(value, window, shape))
    return found


def _max_pool(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> list[Any]:
    """Find the window of each output by running the pooling's own geometry on places, axis by axis."""
    axes = len(args[1])
    value, after = _image(args[0].shape, axes), _image(shape[0], axes)
    value = args[0].view(value)

    def option(at: int, default: Any) -> list[int]:
        given = args[at] if len(args) > at else default
        given = [given] if isinstance(given, int) else list(given)
        return given * axes if len(given) == 1 else given

    kernel = option(1, args[1])
    stride, padding, dilation = option(2, []) or kernel, option(3, 0), option(4, 1)
    windows = _sliding(value, after, kernel, stride, padding, dilation, build.device)
    return [build.largest(value, windows, shape[0]), None]


def _image(shape: Shape, axes: int) -> Shape:
    """Return a shape as one sample, channels, and so many axes. Without channels, torch takes the batch for them."""
    return (1, math.prod(shape[:-axes]), *shape[-axes:])


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
    axes = len(args[1])
    value, out = args[0].view(_image(args[0].shape, axes)), _image(shape[0], axes)
    taps = []
    for n, outputs in zip(value.shape[2:], out[2:], strict=True):
        at = torch.arange(outputs, device=build.device)
        first, end = at * n // outputs, (at * n + n + outputs - 1) // outputs
        members = first + torch.arange(int((end - first).max()), device=build.device)[:, None]
        taps.append(torch.minimum(members, end - 1))
    return [build.largest(value, _pooled(value, taps, build.device), shape[0]), None]


def _average_pool(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    defaults: tuple[Any, ...] = ([], [0], False, True, None)
    value, kernel, stride, padding, ceil, count_padding, divisor = (*args, *defaults[len(args) - 2 :])
    kernel, stride, padding = ([*part] * (2 if len(part) == 1 else 1) for part in (kernel, stride or kernel, padding))
    if ceil or divisor is not None or (any(padding) and not count_padding):  # unequal weights
        return linear(build, aten.avg_pool2d.default, args, options, shape)
    before, after = _image(value.shape, 2)[1:], _image(shape, 2)[1:]
    weight = torch.full((before[0], 1, *kernel), 1 / math.prod(kernel), dtype=torch.float64, device=build.device)
    part = Convolution(weight, before, after, tuple(stride), tuple(padding), groups=before[0], entry_roundings=1)
    return build.affine(value, part, shape)


def linear(build: Builder, operation: Any, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    """Write an operator that is linear in its first argument as a matrix."""
    value, name = args[0], packet(operation)
    build.computed |= "upsample" in name.__name__
    if name in CHANNELWISE:
        axes = 1 if name.__name__.endswith("1d") else 3 if name.__name__.endswith("3d") else 2
        (_, channels, *before), (_, _, *after) = _image(value.shape, axes), _image(shape, axes)

        def one(h: Tensor) -> Tensor:
            found: Tensor = operation(h[None, None], *args[1:], **options)[0, 0]
            return found

        part = linear_map(one, (*before,), (*after,), math.prod(before), channels, build.device)
        return build.affine(value, part, shape)

    def run(h: Tensor) -> Tensor:
        found: Tensor = operation(h, *args[1:], **options)
        return found

    return build.affine(value, linear_map(run, value.shape, tuple(shape), value.numel(), device=build.device), shape)


CHANNELWISE = frozenset({
    aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d, aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d,
    aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_bicubic2d, aten.upsample_trilinear3d,
})  # fmt: skip
"""Linear operators that do the same to every channel, apart from the others."""


RULES: Mapping[Any, Rule] = {
    aten.sum: _sum,
    aten.mean: _mean,
    aten.amax: _maximum,
    aten.amin: _minimum,
    aten.max: _maximum_along,
    aten.min: _minimum_along,
    aten.max_pool2d_with_indices: _max_pool,
    aten.max_pool3d_with_indices: _max_pool,
    aten.adaptive_max_pool2d: _adaptive_max_pool,
    aten.adaptive_max_pool3d: _adaptive_max_pool,
    aten.avg_pool2d: _average_pool,
    aten.prod: _all_multiplied,
}
"""Rules of this file, by the operator's name in torch."""
