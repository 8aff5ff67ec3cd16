"""Rules for functions of each entry."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from certbench.errors import UnsupportedError
from certbench.networks import curves, gated, s_shaped
from certbench.networks import piecewise_linear as pieces
from certbench.networks.activations import Activation
from certbench.networks.operators.builder import Builder, Moving, Rule, aten


def _threshold(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
    value, threshold, instead = args
    if threshold != instead:
        raise UnsupportedError("jumps at its threshold; no linear bound follows a jump, smoothing does")
    return _larger(build, (value, threshold), {}, shape)


def _random_slope(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Any:
    """In eval mode the slope of RReLU is the mean of its ends."""
    value, _, low, high, training = (*args, *(1 / 8, 1 / 3, False)[len(args) - 2 :])[:5]
    if training:
        raise UnsupportedError("draws random slopes in training mode")
    found = build.apply(pieces.leaky_relu((low + high) / 2), value)
    return [found, None] if isinstance(shape, list) else found


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
    aten.maximum: _larger,
    aten.minimum: _smaller,
    aten.threshold: _threshold,
    aten.rrelu_with_noise_functional: _random_slope,
    aten.rrelu_with_noise: _random_slope,
    aten.clamp: _clamp,
    aten._prelu_kernel: _prelu,
    aten.log_sigmoid_forward: _log_sigmoid,
}
"""Rules of this file, by the operator's name in torch."""
