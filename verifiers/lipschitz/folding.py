"""Linear layers as maps whose norms are bounded: matrices if they are small, composed if that is cheap."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.errors import UnsupportedError
from certbench.networks.image_maps import Convolution, Separable
from certbench.networks.maps import Dense, Map, Scale
from certbench.networks.structured_maps import Along, Select, Sparse, Transposed
from certbench.numerics.spectral import DENSE, SIDE
from certbench.verifiers.lipschitz.operator_norms import Normed
from certbench.verifiers.lipschitz.torus import refuse_overlaps

_APART = (Select, Sparse, Along, Transposed)
"""Kinds that are composed with few others."""


def bounded(part: Map) -> Normed:
    """Return a map of a graph as one whose norms are bounded: as a matrix if that is small, and pooling axis by axis.

    Raises:
        UnsupportedError: the map is of another kind.
    """
    match part:
        case Convolution():
            return _pooling(part) or convolution(part)
        case Sparse() | Transposed() if is_small(part):
            roundings = part.entry_roundings if isinstance(part, Sparse) else 0
            return Dense(part.matrix().contiguous(), None, part.shape, roundings)
        case _ if isinstance(part, Normed):
            return part
    raise UnsupportedError(f"has no bound here of the norms of a {type(part).__name__}")


def linear(weight: Float[Tensor, "out_features in_features"]) -> Dense:
    """Return a dense layer."""
    return Dense(weight.to(torch.float64))


def convolution(layer: Convolution) -> Convolution | Dense:
    """Return a convolution in float64, as a matrix if that is small.

    Raises:
        UnsupportedError: the padding is circular, and the map is no whole number of strides or no longer than
            the kernel.
    """
    layer = layer.to(torch.float64)
    refuse_overlaps(layer)
    if not is_small(layer):
        return layer
    return Dense(layer.matrix().contiguous(), None, layer.shape, layer.entry_roundings)


def separable(channels: Scale, vertical: Dense, horizontal: Dense) -> Separable | Dense:
    """Return matrices with no negative entries along the axes of each channel, as one matrix if that is small."""
    layer = Separable(channels, vertical, horizontal)
    if not is_small(layer):
        return layer
    return Dense(layer.matrix(), None, layer.shape, layer.entry_roundings + 2)


def _pooling(part: Convolution) -> Separable | Dense | None:
    """Return a convolution of each channel with the same number everywhere as its sums along the axes."""
    factor = float(part.kernel.flatten()[0])
    alike = part.groups == part.before[0] == part.after[0] and bool((part.kernel == factor).all())
    if not alike or part.axes != 2 or part.circular:
        return None
    vertical, horizontal = (_sums(part, axis) for axis in range(2))
    channels = torch.full(part.before[:1], factor, dtype=torch.float64)
    return separable(Scale(channels, part.entry_roundings), vertical, horizontal)


def _sums(part: Convolution, axis: int) -> Dense:
    """Return the matrix that sums up, along one axis, what each output reads."""
    taps = torch.arange(part.kernel.shape[2 + axis]) * part.dilation[axis] - part.padding[axis]
    read = torch.arange(part.after[1 + axis])[:, None] * part.stride[axis] + taps
    places = torch.arange(part.before[1 + axis])
    return Dense((read[..., None] == places).any(dim=1).to(torch.float64))


def is_small(layer: Map) -> bool:
    """Say whether to make a matrix of a map."""
    return min(layer.inputs, layer.outputs) <= SIDE and layer.inputs * layer.outputs <= DENSE


def compose(outer: Normed, inner: Normed) -> Normed | None:
    """Return `outer` after `inner` as one map, or None if no cheap one exists."""
    match outer, inner:
        case Select(), Select():
            return outer.after(inner)
        case Select(), Dense() if outer.outputs * inner.inputs <= DENSE:
            weight, magnitude = (outer.forward(part.T).T for part in (inner.weight, inner.moduli))
            return Dense(weight, magnitude, outer.shape, inner.entry_roundings)
        case Dense(), Select() if outer.outputs * inner.inputs <= DENSE:
            weight, magnitude = (inner.transpose(part) for part in (outer.weight, outer.moduli))
            return Dense(weight, magnitude, outer.shape, outer.entry_roundings + inner.transposed_roundings)
        case Convolution(), Select():
            return _padding(outer, inner)
    if isinstance(outer, _APART) or isinstance(inner, _APART):
        return None
    roundings = outer.entry_roundings + inner.entry_roundings + 2
    match outer, inner:
        case Scale(), Scale():
            return Scale(outer.diagonal * inner.diagonal, roundings)
        case Scale(), Dense():
            by = outer.diagonal.reshape(-1, 1)
            return Dense(by * inner.weight, by.abs() * inner.moduli, outer.shape, roundings)
        case Dense(), Scale():
            by = inner.diagonal.reshape(1, -1)
            return Dense(outer.weight * by, outer.moduli * by.abs(), outer.shape, roundings)
        case Dense(), Dense() if outer.outputs * inner.inputs <= max(outer.weight.numel(), inner.weight.numel()):
            # else through a bottleneck: the product would have more entries than its factors
            roundings += 2 * outer.inputs
            return Dense(outer.weight @ inner.weight, outer.moduli @ inner.moduli, outer.shape, roundings)
        case Scale(), Convolution() if _constant(outer, inner.shape[0]):
            by = _factors(outer, inner.shape[0]).reshape(-1, 1, *[1] * inner.axes)
            return replace(inner, kernel=by * inner.kernel, entry_roundings=roundings)
        case Convolution(), Scale() if _constant(inner, outer.before[0]):
            by = _factors(inner, outer.before[0]).reshape(outer.groups, 1, -1, *[1] * outer.axes)
            grouped = outer.kernel.reshape(outer.groups, -1, *outer.kernel.shape[1:])
            return replace(outer, kernel=(grouped * by).flatten(0, 1), entry_roundings=roundings)
        case Scale(), Separable() if _constant(outer, inner.shape[0]):
            return replace(inner, channels=_scaled(inner.channels, outer))
        case Separable(), Scale() if _constant(inner, outer.shape[0]):
            return replace(outer, channels=_scaled(outer.channels, inner))
    return None


def _padding(part: Convolution, before: Select) -> Convolution | None:
    """Return a convolution that pads by itself, if all that the selection before it does is to pad."""
    grid = before.index.view(part.before)
    if any(part.padding) or part.circular or not bool((grid[0] == 0).any()):
        return None
    start = (grid[0] == 0).nonzero()[0].tolist()
    zeros = bool((grid < 0).any())
    sizes, places = [], []
    for axis, first in enumerate(start):
        line = grid[0][tuple(slice(None) if i == axis else at for i, at in enumerate(start))]
        size = len(torch.unique(line[line >= 0]))
        at = torch.arange(len(line)) - first
        sizes.append(size)
        places.append(torch.where((at >= 0) & (at < size), at, -1) if zeros else at.remainder(size))
    if part.before[0] * math.prod(sizes) != before.inputs:
        return None
    expected = torch.arange(part.before[0])
    for size, at in zip(sizes, places, strict=True):
        held = torch.where(expected[..., None] < 0, -1, expected[..., None] * size + at)
        expected = torch.where(at < 0, -1, held)
    if not torch.equal(expected, grid):
        return None
    found = replace(part, before=(part.before[0], *sizes), padding=tuple(start), circular=not zeros)
    try:
        refuse_overlaps(found)
    except UnsupportedError:  # so the padded map is bounded as it is
        return None
    return found


def _scaled(channels: Scale, by: Scale) -> Scale:
    factors = _factors(by, channels.inputs)
    return Scale(channels.diagonal * factors, channels.entry_roundings + by.entry_roundings + 2)


def _factors(scale: Scale, channels: int) -> Float[Tensor, " channels"]:
    """Return the factor of the first entry of each channel."""
    return scale.diagonal.reshape(channels, -1)[:, 0]


def _constant(scale: Scale, channels: int) -> bool:
    """Say whether the factors are the same all over each channel."""
    factors = scale.diagonal.reshape(channels, -1)
    return bool((factors == factors[:, :1]).all())


def added(parts: Sequence[Normed | None]) -> Normed | None:
    """Return the sum of maps of one value (None: the identity) as one map, or None if no cheap one exists."""
    if all(isinstance(part, Select) for part in parts):
        joint, *others = (part for part in parts if isinstance(part, Select))
        index = joint.index
        for other in others:
            if bool(((index >= 0) & (other.index >= 0)).any()):
                return None
            index = torch.maximum(index, other.index)
        return replace(joint, index=index)
    size = next((part.inputs for part in parts if part is not None), SIDE + 1)
    whole = [linear(torch.eye(size, dtype=torch.float64)) if part is None and size <= SIDE else part for part in parts]
    matrices = [part for part in whole if isinstance(part, Dense)]
    if len(matrices) < len(parts):
        return None
    weight, moduli = (
        torch.stack(found).sum(dim=0) for found in zip(*((m.weight, m.moduli) for m in matrices), strict=True)
    )
    roundings = max(part.entry_roundings for part in matrices) + len(parts)
    return Dense(weight, moduli, matrices[0].features, roundings)
