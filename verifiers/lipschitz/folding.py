"""Linear layers as maps whose norms are bounded: matrices if they are small, composed if that is cheap."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.networks.image_maps import Convolution, Separable
from certbench.networks.maps import Dense, Map, Scale
from certbench.networks.structured_maps import Along, Select, Sparse, Transposed
from certbench.numerics.spectral import DENSE, SIDE
from certbench.verifiers.lipschitz.operator_norms import Normed
from certbench.verifiers.lipschitz.torus import refuse_overlaps

_APART = (Select, Sparse, Along, Transposed)
"""Kinds that are composed with no other kind."""


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


def is_small(layer: Map) -> bool:
    """Say whether to make a matrix of a map."""
    return min(layer.inputs, layer.outputs) <= SIDE and layer.inputs * layer.outputs <= DENSE


def compose(outer: Normed, inner: Normed) -> Normed | None:
    """Return `outer` after `inner` as one map, or None if no cheap one exists."""
    if isinstance(outer, Select) and isinstance(inner, Select):
        return outer.after(inner)
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
        case Scale(), Convolution() if outer.shape == inner.shape and _constant(outer):
            by = outer.diagonal.flatten(1)[:, 0].reshape(-1, 1, *[1] * inner.axes)
            return replace(inner, kernel=by * inner.kernel, entry_roundings=roundings)
        case Convolution(), Scale() if inner.shape == outer.before and _constant(inner):
            by = inner.diagonal.flatten(1)[:, 0].reshape(outer.groups, 1, -1, *[1] * outer.axes)
            grouped = outer.kernel.reshape(outer.groups, -1, *outer.kernel.shape[1:])
            return replace(outer, kernel=(grouped * by).flatten(0, 1), entry_roundings=roundings)
        case Scale(), Separable() if outer.shape == inner.shape and _constant(outer):
            return replace(inner, channels=_scaled(inner.channels, outer))
        case Separable(), Scale() if _constant(inner):
            return replace(outer, channels=_scaled(outer.channels, inner))
    return None


def _scaled(channels: Scale, by: Scale) -> Scale:
    return Scale(channels.diagonal * by.diagonal[:, 0, 0], channels.entry_roundings + by.entry_roundings + 2)


def _constant(scale: Scale) -> bool:
    """Say whether the factors are the same all over each channel."""
    factors = scale.diagonal.flatten(1)
    return bool((factors == factors[:, :1]).all())
