"""Rules for PyTorch layers: each is a linear map, a pooling of windows, or a slope.

`operator_norms` bounds the linear maps. A layer that no table here names is refused, and so is an option that its rule
does not know.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from certbench.errors import UnsupportedError
from certbench.networks.image_maps import Convolution, Pair
from certbench.networks.maps import Dense, Scale
from certbench.verifiers.lipschitz.folding import convolution, linear, separable
from certbench.verifiers.lipschitz.operator_norms import Normed

Shape = tuple[int, ...]


def pair(value: int | Sequence[int]) -> Pair:
    """Return height and width from a layer's option: both numbers, or one number for both."""
    height, width = (value, value) if isinstance(value, int) else value
    return height, width


def _linear(layer: nn.Linear, size: Shape, shape: Shape) -> Normed:
    if len(size) != 1:
        raise UnsupportedError(f"is applied along the last axis of features of shape {size}; flatten them first")
    return linear(layer.weight)


def _convolution(layer: nn.Conv2d, size: Shape, shape: Shape) -> Normed:
    if layer.padding_mode not in ("zeros", "circular"):
        raise UnsupportedError(f"has no bound here with {layer.padding_mode} padding, only with zeros and circular")
    if layer.padding == "same":
        padding = tuple(d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
    else:
        padding = (0, 0) if isinstance(layer.padding, str) else layer.padding
    return convolution(
        Convolution(
            layer.weight,
            size,
            shape,
            pair(layer.stride),
            pair(padding),
            pair(layer.dilation),
            layer.groups,
            layer.padding_mode == "circular",
        )
    )


def _sliding(layer: nn.AvgPool2d | nn.MaxPool2d, shape: Shape, axis: int) -> tuple[Tensor, Tensor]:
    """Return the first pixel of each window, and the one behind its last; both may lie outside the map."""
    dilation = pair(layer.dilation)[axis] if isinstance(layer, nn.MaxPool2d) else 1
    start = torch.arange(shape[1 + axis]) * pair(layer.stride)[axis] - pair(layer.padding)[axis]
    return start, start + dilation * (pair(layer.kernel_size)[axis] - 1) + 1


def _adaptive(size: Shape, shape: Shape, axis: int) -> tuple[Tensor, Tensor]:
    """Return the same for windows that cover the map. Some overlap, unless their number divides its length."""
    n, o = size[1 + axis], shape[1 + axis]
    output = torch.arange(o)
    return output * n // o, (output * n + n + o - 1) // o


def _members(start: Tensor, end: Tensor, n: int, dilation: int = 1) -> Float[Tensor, "o n"]:
    """Say whether each of n pixels lies in each window."""
    ahead = torch.arange(n) - start[:, None]
    return ((ahead >= 0) & (torch.arange(n) < end[:, None]) & (ahead % dilation == 0)).to(torch.float64)


def _averages(members: Float[Tensor, "o n"], counts: Tensor) -> Dense:
    weight = members / counts[:, None]
    return Dense(weight, entry_roundings=1)


def _average_pool(layer: nn.AvgPool2d, size: Shape, shape: Shape) -> Normed:
    _image(size)

    def along(axis: int) -> Dense:
        n = size[1 + axis]
        start, end = _sliding(layer, shape, axis)
        members = _members(start, end, n)
        if layer.divisor_override is not None:
            return _averages(members, torch.ones_like(start))
        if layer.count_include_pad:  # but not the pixels that ceil_mode sees behind the padding
            return _averages(members, end.clamp(max=n + pair(layer.padding)[axis]) - start)
        return _averages(members, members.sum(1))

    factor = 1.0 if layer.divisor_override is None else 1 / layer.divisor_override
    channels = Scale(torch.full(size[:1], factor, dtype=torch.float64), entry_roundings=1)
    return separable(channels, *map(along, range(len(size) - 1)))


def _adaptive_average_pool(layer: nn.AdaptiveAvgPool2d, size: Shape, shape: Shape) -> Normed:
    _image(size)

    def along(axis: int) -> Dense:
        start, end = _adaptive(size, shape, axis)
        return _averages(_members(start, end, size[1 + axis]), end - start)

    channels = Scale(torch.ones(size[:1], dtype=torch.float64))
    return separable(channels, *map(along, range(len(size) - 1)))


def _image(size: Shape) -> None:
    """Refuse features that torch takes for one image with as many channels as there are inputs."""
    if len(size) != 3:
        raise UnsupportedError(f"pools features of shape {size}, without channels")


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, size: Shape, shape: Shape) -> Normed:
    if layer.running_mean is None or layer.running_var is None:
        raise UnsupportedError("normalises by the batch; without running statistics it is no function of one input")
    gain = torch.ones_like(layer.running_var) if layer.weight is None else layer.weight
    scale = gain / (layer.running_var + layer.eps).sqrt()
    return Scale(scale.reshape(-1, *[1] * (len(shape) - 1)).expand(shape), entry_roundings=4)


LINEAR: Mapping[type[nn.Module], Callable[[Any, Shape, Shape], Normed]] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _adaptive_average_pool,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
}
"""Linear part of each affine layer, from features of one shape to another."""


def _max_pool(layer: nn.MaxPool2d, size: Shape, shape: Shape) -> int:
    _image(size)
    return math.prod(
        int(_members(*_sliding(layer, shape, axis), n, pair(layer.dilation)[axis]).sum(0).max())
        for axis, n in enumerate(size[1:])
    )


def _adaptive_max_pool(layer: nn.AdaptiveMaxPool2d, size: Shape, shape: Shape) -> int:
    _image(size)
    return math.prod(int(_members(*_adaptive(size, shape, axis), n).sum(0).max()) for axis, n in enumerate(size[1:]))


WINDOWS: Mapping[type[nn.Module], Callable[[Any, Shape, Shape], int]] = {
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveMaxPool2d: _adaptive_max_pool,
}
r"""Largest number m of windows of each max pooling that share one pixel. The Lipschitz constant in the r-norm is
$m^{1/r}$: a maximum moves no further than the pixel of its window that moves most, and an impulse moves m maxima as
far."""


def _celu(layer: nn.CELU) -> float:
    if layer.alpha <= 0:
        raise UnsupportedError(f"is steeper than any bound with alpha = {layer.alpha:g}")
    return 1.0


def _softplus(layer: nn.Softplus) -> float:
    if layer.threshold < 20:
        raise UnsupportedError(f"jumps at its threshold {layer.threshold:g}; write a threshold of at least 20")
    return 1.0


SLOPES: Mapping[type[nn.Module], Callable[[Any], float]] = {
    nn.ReLU: lambda layer: 1.0,
    nn.ReLU6: lambda layer: 1.0,
    nn.Hardtanh: lambda layer: 1.0,
    nn.LeakyReLU: lambda layer: max(1.0, abs(layer.negative_slope)),
    nn.PReLU: lambda layer: max(1.0, float(layer.weight.detach().abs().max())),
    nn.ELU: lambda layer: max(1.0, abs(layer.alpha)),
    nn.CELU: _celu,
    nn.SELU: lambda layer: 1.7581,
    nn.Softplus: _softplus,
    nn.Tanh: lambda layer: 1.0,
    nn.Tanhshrink: lambda layer: 1.0,
    nn.Softshrink: lambda layer: 1.0,
    nn.Sigmoid: lambda layer: 0.25,
    nn.LogSigmoid: lambda layer: 1.0,
    nn.Hardsigmoid: lambda layer: 0.1666667,
    nn.Softsign: lambda layer: 1.0,
    nn.GELU: lambda layer: 1.12891 if layer.approximate == "none" else 1.12900,
    nn.SiLU: lambda layer: 1.09984,
    nn.Mish: lambda layer: 1.08850,
    nn.Hardswish: lambda layer: 1.5,
}
"""Steepest slope of each activation, rounded up. Softplus is the mathematical function; PyTorch's differs from it by
less than 3e-9 / beta above its threshold."""


def _max_pool2d(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> nn.Module:
    return nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
    del p, inplace
    if training:
        raise UnsupportedError("drops at random, with training=True; pass self.training")
    return nn.Identity()


CALLS: Mapping[Any, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "relu_": partial(nn.ReLU, inplace=True),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    torch.relu: nn.ReLU,
    torch.tanh: nn.Tanh,
    torch.sigmoid: nn.Sigmoid,
    functional.relu: nn.ReLU,
    functional.relu6: nn.ReLU6,
    functional.hardtanh: nn.Hardtanh,
    functional.leaky_relu: nn.LeakyReLU,
    functional.elu: nn.ELU,
    functional.selu: nn.SELU,
    functional.softplus: nn.Softplus,
    functional.tanh: nn.Tanh,
    functional.sigmoid: nn.Sigmoid,
    functional.gelu: nn.GELU,
    functional.silu: nn.SiLU,
    functional.mish: nn.Mish,
    functional.max_pool2d: _max_pool2d,
    functional.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
    functional.avg_pool2d: nn.AvgPool2d,
    functional.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    functional.dropout: _dropout,
}
"""Module of each function that takes the same options in the same order."""
