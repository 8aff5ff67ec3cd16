"""Rules for normalisations, softmax, and other functions of several entries."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from certbench.errors import UnsupportedError
from certbench.networks import curves, s_shaped
from certbench.networks import piecewise_linear as pieces
from certbench.networks.graph import Normalised, Softmax
from certbench.networks.maps import Scale
from certbench.networks.operators.arithmetic import along
from certbench.networks.operators.builder import FULL, MASKS, Builder, Moving, Rule, Shape, aten
from certbench.networks.operators.pooling import axes_of, groups_of, windows_of


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
        apart = build.affine(value, along(centre[None], rows, 1), (rows, size))
    else:
        minus = torch.full((1, 1, size), -1 / size, dtype=torch.float64, device=build.device)
        apart = build.total(value, build.expand(build.affine(value, along(minus, rows, 1), (rows, 1)), (rows, size)))
    return _shortened(build, apart.view((rows, size)), eps)


def _shortened(build: Builder, value: Moving, eps: float) -> Moving:
    """Divide each row by the root of its mean of squares plus eps."""
    rows, size = value.shape
    squares = build.apply(curves.power(2.0), value)
    mean = torch.full((1, 1, size), 1 / size, dtype=torch.float64, device=build.device)
    energy = build.affine(squares, along(mean, rows, 1), (rows, 1), build.flat(eps, (rows, 1)))
    inverse = build.expand(build.apply(curves.power(-0.5), energy), (rows, size))
    return build.marked(build.product(value, inverse), Normalised((value.node,), size, eps))


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
    found = _shortened(build, flat, eps).view(shape[0])
    return [found if weight is None else build.scale(found, weight), None]


def _softmax(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any, log: bool = False) -> Any:
    r"""Write $e^{x_i} / \sum_j e^{x_j}$ as $1 / (1 + \sum_{j \ne i} e^{x_j - x_i})$; what all share cancels."""
    value, dim = args[0], args[1]
    if value.masked is not None:
        return _masked_softmax(build, value, dim, log)
    apart, last, axis = _differences(build, value, dim)
    rows, n, _ = apart.shape
    if n == 1:
        return build.scale(value, 0.0, 0.0 if log else 1.0)
    if n == 2:  # a function of one difference
        found = build.apply(curves.LogSigmoid() if log else s_shaped.Sigmoid(), build.scale(apart, -1.0))
    else:
        ones = torch.ones(1, 1, n - 1, dtype=torch.float64, device=build.device)
        sums = build.affine(
            build.apply(curves.Exp(), apart), along(ones, rows * n, 1), (rows, n), build.flat(1.0, (rows, n))
        )
        found = build.scale(build.apply(curves.Log(), sums), -1.0) if log else build.apply(curves.power(-1.0), sums)
        build.marked(found, Softmax((last.node,), n, log))
    found = found.view(last.shape)
    return build.select(found, build.places(found).movedim(-1, axis), shape)


def _masked_softmax(build: Builder, value: Moving, dim: int, log: bool) -> Any:
    """Write a softmax over those entries of each row that are not minus infinity; the others' is 0.

    Rows of the same number of entries become one softmax.
    """
    assert value.masked is not None
    if log:
        raise UnsupportedError(f"takes the logarithm of a softmax of -inf, which is -inf; {MASKS}")
    places, kept = (
        part.reshape(value.shape).movedim(dim, -1) for part in (build.places(value), (~value.masked).to(build.device))
    )
    shape, n = places.shape, places.shape[-1]
    places, kept = places.reshape(-1, n), kept.reshape(-1, n)
    counts = kept.sum(dim=1)
    if bool((counts == 0).any()):
        raise UnsupportedError(
            "has a softmax of a row that is all -inf, which is NaN; leave an entry of each row unmasked"
        )
    index, bias = torch.full_like(places, -1), torch.zeros(places.shape, dtype=torch.float64, device=build.device)
    bias[counts == 1] = kept[counts == 1].to(bias)  # the softmax of one entry is 1
    parts, size = list[Moving](), 0
    for count in sorted(set(counts.tolist())):
        if count > 1:
            same = kept & (counts == count)[:, None]
            rows = int(same.sum()) // count, count
            parts.append(_softmax(build, (build.select(value, places[same], rows), 1), {}, rows))
            index[same] = torch.arange(size, size + math.prod(rows), device=build.device)
            size += math.prod(rows)
    index, bias = (part.reshape(shape).movedim(-1, dim) for part in (index, bias))
    if not parts:
        return bias
    joint = parts[0] if len(parts) == 1 else build.joined(parts, (size,))
    return build.select(joint.view((size,)), index, value.shape, bias.flatten() if bool(bias.any()) else None)


def _log_softmax(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Any:
    return _softmax(build, args, options, shape, log=True)


def _logsumexp(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    """Write the logarithm of a sum of exponentials as x_0 - log softmax_0 along a single axis."""
    value = args[0]
    (axis,) = axes_of(value, args[1])
    logs = _log_softmax(build, (value, axis), {}, value.shape)
    first = build.places(value).select(axis, 0)
    return build.difference(build.select(value, first, shape), build.select(logs, first, shape))


def _differences(build: Builder, value: Moving, dim: int) -> tuple[Moving, Moving, int]:
    """Return x_j - x_i for all pairs i != j along an axis, (rows, n, n - 1), and the value with that axis last."""
    axis = dim % len(value.shape)
    moved = (*(n for i, n in enumerate(value.shape) if i != axis), value.shape[axis])
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


def _norm(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    value, order = args[0], float(args[1]) if len(args) > 1 else 2.0
    axes = axes_of(value, args[2] if len(args) > 2 else None)
    groups, _ = groups_of(value, axes, build.device)
    if order == 2:
        return build.apply(curves.power(0.5), build.summed(build.apply(curves.power(2.0), value), groups, shape))
    moduli = build.apply(pieces.ABS, value)
    if order == 1:
        return build.summed(moduli, groups, shape)
    if order == math.inf:
        return build.largest(moduli, windows_of(value, axes, build.device), shape)
    raise UnsupportedError(f"has no rule for the {order:g}-norm")


def _variance(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Any:
    """Return the variance along some axes; with the mean if two are asked for."""
    value, axes = args[0], axes_of(args[0], args[1] if len(args) > 1 else options.get("dim"))
    correction = options.get("correction", 1)
    groups, kept = groups_of(value, axes, build.device)
    count = value.numel() // math.prod(kept)
    mean = build.summed(value, groups, kept, 1 / count)
    apart = build.difference(value, build.expand(mean, value.shape))
    squares = build.apply(curves.power(2.0), apart)
    factor = 1 / max(count - (1 if correction is None else correction), 0.0)
    if isinstance(shape, list):
        return [build.summed(squares, groups, shape[0], factor), mean.view(shape[1])]
    return build.summed(squares, groups, shape, factor)


RULES: Mapping[Any, Rule] = {
    aten.native_batch_norm: _batch_norm,
    aten._native_batch_norm_legit: _batch_norm,
    aten._native_batch_norm_legit_no_training: _batch_norm,
    aten.native_layer_norm: _layer_norm,
    aten.native_group_norm: _group_norm,
    aten._fused_rms_norm: _rms_norm,
    aten._softmax: _softmax,
    aten._safe_softmax: _softmax,
    aten._log_softmax: _log_softmax,
    aten.logsumexp: _logsumexp,
    aten.linalg_vector_norm: _norm,
    aten.var: _variance,
    aten.var_mean: _variance,
}
"""Rules of this file, by the operator's name in torch."""
