"""Rules for sums, products, matrices, convolutions, powers, and the moving of entries."""

import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certbench.errors import UnsupportedError
from certbench.networks import curves, s_shaped
from certbench.networks import piecewise_linear as pieces
from certbench.networks.graph import Affine, Elementwise, Steep
from certbench.networks.image_maps import Convolution
from certbench.networks.maps import Dense, Map, Scale
from certbench.networks.operators.builder import MASKS, Builder, Moving, Rule, Shape, aten, check_finite, rearranged
from certbench.networks.structured_maps import Along, Transposed


def _added(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any, sign: float = 1.0) -> Moving:
    factor = sign * options.get("alpha", 1)
    first, second = args
    if isinstance(first, Moving):
        first = build.expand(first, shape)
        if not isinstance(second, Moving):
            return build.shift(first, factor * build.flat(second, shape))
        second = build.expand(second, shape)
        other = second if factor == 1 else build.scale(second, factor)
        found = build.total(first, other).hiding(first.masked, other.masked)
        node = build.nodes[second.node]
        shrinks = isinstance(node, Elementwise) and isinstance(node.function, s_shaped.Tanh) and factor == -1
        return (
            build.marked(found, Steep(node.sources, 0.0, 1.0)) if shrinks and node.sources == (first.node,) else found
        )
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
        check_finite(first, second)
        return build.product(build.expand(first, shape), build.expand(second, shape))
    check_finite(second)
    return build.scale(build.expand(first, shape), second)


def _divided(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    if options.get("rounding_mode") is not None:
        raise UnsupportedError("rounds a quotient, which is not continuous")
    first, second = args
    check_finite(second)
    if not isinstance(second, Moving):
        value = build.expand(first, shape)
        flat = build.flat(second, shape)
        if value.masked is not None and not bool((flat[value.masked] > 0).all()):
            raise UnsupportedError(f"divides -inf by a number that is not positive; {MASKS}")
        found = build.affine(value, Scale(torch.ones_like(flat) / flat, entry_roundings=1), shape)
        return found.hiding(value.masked)
    check_finite(first)
    if isinstance(first, Moving) and _is_softsign(build, first, second):
        return build.apply(s_shaped.Softsign(), first)
    inverse = build.expand(build.apply(curves.power(-1.0), second), shape)
    if isinstance(first, Moving):
        return build.product(build.expand(first, shape), inverse)
    return build.scale(inverse, first)


def _is_softsign(build: Builder, first: Moving, second: Moving) -> bool:
    """Say whether the second value is 1 plus the modulus of the first."""
    shift = build.nodes[second.node]
    if first.shape != second.shape or not isinstance(shift, Affine) or shift.map is not None or shift.bias is None:
        return False
    modulus = build.nodes[shift.sources[0]]
    is_modulus = isinstance(modulus, Elementwise) and modulus.function is pieces.ABS
    return is_modulus and modulus.sources == (first.node,) and bool((shift.bias == 1).all())


def _negated(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    return build.scale(args[0], -1.0)


def _matrix_product(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    """Multiply (.., m, k) by (.., k, n); a vector on the right counts as a column, and on the left as a row."""
    first, second = args
    if isinstance(first, Moving) and isinstance(second, Moving):
        return _moving_product(build, first, second, shape)
    if isinstance(first, Moving):
        weight = second[:, None] if second.dim() == 1 else second
        blocks = weight.transpose(-1, -2).reshape(-1, weight.shape[-1], weight.shape[-2])
        outer = first.numel() // (len(blocks) * first.shape[-1])
        return build.affine(first, along(blocks, outer, 1), shape)
    weight = first[None] if first.dim() == 1 else first
    inner = 1 if len(second.shape) == 1 else second.shape[-1]
    blocks = weight.reshape(-1, *weight.shape[-2:])
    return build.affine(
        second, along(blocks, second.numel() // (blocks.shape[0] * blocks.shape[2] * inner), inner), shape
    )


def along(blocks: Tensor, outer: int, inner: int) -> Map:
    """Return matrices (blocks, out, in) along one axis, where `outer` places stand before it and `inner` behind."""
    if len(blocks) == outer == inner == 1:
        return Dense(blocks[0].contiguous())
    return Along(blocks.contiguous(), outer, inner)


def _moving_product(build: Builder, first: Moving, second: Moving, shape: Shape) -> Moving:
    """Multiply two matrices that both depend on the input: all products, and their sums."""
    a, b = build.places(first), build.places(second)
    a = a[None] if a.dim() == 1 else a
    b = b[:, None] if b.dim() == 1 else b
    a, b = a[..., :, :, None], b[..., None, :, :]
    joint = (*np.broadcast_shapes(a.shape, b.shape),)  # (.., m, k, n)
    a, b = a.expand(joint), b.expand(joint)
    k, n = a.shape[-2:]
    parts = build.product(build.select(first, a, a.shape), build.select(second, b, b.shape))
    ones = torch.ones(1, 1, k, dtype=torch.float64, device=build.device)
    return build.affine(parts, along(ones, parts.numel() // (k * n), n), shape)


def _with_bias(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    """Multiply matrices and add a bias: addmm, baddbmm, addmv."""
    bias, first, second = args
    check_finite(first, second)
    product = _matrix_product(build, (first, second), {}, shape)
    alpha, beta = options.get("alpha", 1), options.get("beta", 1)
    node = build.nodes[-1]
    plain = not isinstance(bias, Moving) and alpha == beta == 1 and bool(bias.isfinite().all())
    if plain and isinstance(node, Affine) and node.bias is None:
        build.nodes[-1] = Affine(node.sources, node.size, node.origin, node.map, build.flat(bias, shape))
        return product
    scaled = product if alpha == 1 else build.scale(product, alpha)
    if isinstance(bias, Moving):
        shift = build.expand(bias, shape)
        shift = shift if beta == 1 else build.scale(shift, beta)
        return build.total(scaled, shift).hiding(shift.masked)
    return build.shift(scaled, beta * bias)


def _dot(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    return _matrix_product(build, args, options, shape)


def _convolution(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    value, weight, bias, stride, padding, dilation, transposed, _, groups = args
    if not isinstance(value, Moving) or isinstance(weight, Moving) or isinstance(bias, Moving):
        raise UnsupportedError("convolves with a kernel that depends on the input")
    before, after = value.shape[1:], tuple(shape[1:])
    axes = len(after) - 1
    stride, padding, dilation = (tuple(part) * (axes if len(part) == 1 else 1) for part in (stride, padding, dilation))
    if transposed:
        part: Map = Transposed(Convolution(weight, after, before, stride, padding, dilation, groups))
    else:
        part = Convolution(weight, before, after, stride, padding, dilation, groups)
    return build.affine(
        value, part, shape, None if bias is None else bias.view(-1, *[1] * axes).expand(after).flatten()
    )


def _power(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    value, exponent = args
    if isinstance(exponent, Moving):
        if isinstance(value, Moving | Tensor) or not value > 0:
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


def _copied(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Any:
    """Return the second value in the place of the first."""
    if isinstance(args[1], Moving):
        return build.expand(args[1], shape)
    return torch.as_tensor(args[1], dtype=torch.float64, device=build.device).expand(tuple(shape)).clone()


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
    value: Moving = args[0]
    return value.view(shape)


def _pad(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Any:
    value, pads, fill = args[0], args[1], args[2] if len(args) > 2 else options.get("value", 0.0)
    constant = torch.full((1,), float(fill or 0.0), dtype=torch.float64, device=build.device)

    def padded(numbers: Tensor, mark: Tensor) -> Tensor:
        return torch.nn.functional.pad(numbers, pads, value=float(mark) if fill else 0.0)

    return rearranged(build, padded, (value, constant), {}, shape)


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
    aten.pow: _power,
    aten.expm1: _expm1,
    aten.log1p: _log1p,
    aten.copy: _copied,
    aten.where: _where,
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
"""Rules of this file, by the operator's name in torch."""


KEEPING = (_same, _item)
"""Rules that keep all numbers as they are."""


MASKING = (*KEEPING, _added, _subtracted, _subtracted_from, _multiplied, _divided, _copied, _where, _pad, _with_bias)
"""Rules that know what to do with entries that are minus infinity."""
