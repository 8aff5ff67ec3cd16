"""Activations, each beside the same function and its derivative in mpmath, and random intervals for them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from mpmath import mp, mpf
from torch import Tensor

from certbench.networks.activations import Activation
from certbench.networks.curves import Elu, Exp, Log, LogSigmoid, Power, Sine, Softplus
from certbench.networks.gated import Gelu, GeluTanh, Hardswish, Mish, Silu
from certbench.networks.piecewise_linear import (
    ABS,
    HARDSIGMOID,
    IDENTITY,
    RELU,
    clamp,
    leaky_relu,
    piecewise_linear,
)
from certbench.networks.s_shaped import Atan, Erf, Sigmoid, Softsign, Tanh

DIGITS = 60
"""Number of decimal digits of mpmath in the tests. Formulas are written so that none of them cancels more than 20."""


@dataclass(frozen=True)
class Case:
    """An activation, and what is known of it.

    Attributes:
        f: the activation.
        value: the function in mpmath.
        slope: its derivative in mpmath; at a kink that of either side.
        domain: where intervals may lie, without overflow.
    """

    f: Activation
    value: Callable[[mpf], mpf]
    slope: Callable[[mpf], mpf]
    domain: tuple[float, float] = field(default=(-1e6, 1e6))


def _sigmoid(z: mpf) -> mpf:
    return 1 / (1 + mp.exp(-z))


def _pieces(knots: list[float], slopes: list[float], start: float) -> tuple[Callable[[mpf], mpf], Callable[[mpf], mpf]]:
    """Return a piecewise linear function and its slope."""

    def value(z: mpf) -> mpf:
        if not knots:
            return mpf(start) + mpf(slopes[0]) * z
        if z <= knots[0]:
            return mpf(start) + mpf(slopes[0]) * (z - mpf(knots[0]))
        height = mpf(start)
        for i, knot in enumerate(knots):
            end = z if i + 1 == len(knots) else min(z, mpf(knots[i + 1]))
            if end > knot:
                height += mpf(slopes[i + 1]) * (end - mpf(knot))
        return height

    return value, lambda z: mpf(slopes[sum(z > knot for knot in knots)])


def _pwl(f: Activation, knots: list[float], slopes: list[float], start: float) -> Case:
    return Case(f, *_pieces(knots, slopes, start))


def _elu(alpha: float, scale: float, rate: float) -> Case:
    a, s, r = mpf(alpha), mpf(scale), mpf(rate)
    return Case(
        Elu(alpha, scale, rate),
        lambda z: s * z if z > 0 else s * a * mp.expm1(r * z),
        lambda z: s if z > 0 else s * a * r * mp.exp(r * z),
    )


def _softplus(z: mpf) -> mpf:
    return z + mp.log1p(mp.exp(-z)) if z > 0 else mp.log1p(mp.exp(z))


def _gelu_slope(z: mpf) -> mpf:
    return mp.erfc(-z / mp.sqrt(2)) / 2 + z * mp.npdf(z)


def _gate(z: mpf) -> tuple[mpf, mpf]:
    """Return the gate of tanh-GELU, and its slope."""
    k, a = mp.sqrt(2 / mp.pi), mpf("0.044715")
    w = 2 * k * (z + a * z**3)
    return _sigmoid(w), _sigmoid(w) * _sigmoid(-w) * 2 * k * (1 + 3 * a * z * z)


def _mish(z: mpf) -> tuple[mpf, mpf]:
    w = mp.exp(min(z, mpf(10000)))
    n = w * w + 2 * w
    return n / (n + 2), 4 * w * (w + 1) / (n + 2) ** 2


def _power(exponent: float, low: float = -1e3, high: float = 1e3) -> Case:
    """Return a power; mpmath's of a negative base is real for whole exponents alone."""
    p = int(exponent) if float(exponent).is_integer() else mpf(exponent)
    return Case(Power(exponent), lambda z: z**p, lambda z: p * z ** (p - 1), (low, high))


def _softplus_case(beta: float, threshold: float) -> Case:
    b = mpf(beta)
    return Case(Softplus(beta, threshold), lambda z: _softplus(b * z) / b, lambda z: _sigmoid(b * z))


mp.dps = DIGITS

CASES = {
    "identity": _pwl(IDENTITY, [], [1], 0),
    "relu": _pwl(RELU, [0], [0, 1], 0),
    "abs": _pwl(ABS, [0], [-1, 1], 0),
    "leaky relu": _pwl(leaky_relu(0.01), [0], [0.01, 1], 0),
    "leaky relu, steep": _pwl(leaky_relu(1.5), [0], [1.5, 1], 0),
    "leaky relu, negative": _pwl(leaky_relu(-0.3), [0], [-0.3, 1], 0),
    "relu6": _pwl(clamp(0, 6), [0, 6], [0, 1, 0], 0),
    "hardtanh": _pwl(clamp(-1, 1), [-1, 1], [0, 1, 0], -1),
    "clamp above": _pwl(clamp(None, 0.3), [0.3], [1, 0], 0.3),
    "zigzag": _pwl(piecewise_linear([-1, 0.5, 2], [0.3, -1, 2, 0.1], 0.7), [-1, 0.5, 2], [0.3, -1, 2, 0.1], 0.7),
    "hardsigmoid": Case(
        HARDSIGMOID,
        lambda z: min(max(z + 3, mpf(0)), mpf(6)) / 6,
        lambda z: mpf(1) / 6 if -3 < z <= 3 else mpf(0),
    ),
    "elu": _elu(1.0, 1.0, 1.0),
    "elu, concave kink": _elu(3.0, 1.0, 1.0),
    "selu": _elu(1.6732632423543772, 1.0507009873554805, 1.0),
    "celu": _elu(2.0, 1.0, 0.5),
    "softplus": _softplus_case(1.0, 20.0),
    "softplus, beta 3": _softplus_case(3.0, 5.0),
    "log-sigmoid": Case(LogSigmoid(), lambda z: -_softplus(-z), lambda z: _sigmoid(-z)),
    "sigmoid": Case(Sigmoid(), _sigmoid, lambda z: _sigmoid(z) * _sigmoid(-z)),
    "tanh": Case(Tanh(), mp.tanh, lambda z: mp.sech(z) ** 2),
    "erf": Case(Erf(), mp.erf, lambda z: 2 / mp.sqrt(mp.pi) * mp.exp(-z * z)),
    "atan": Case(Atan(), mp.atan, lambda z: 1 / (1 + z * z)),
    "softsign": Case(Softsign(), lambda z: z / (1 + abs(z)), lambda z: 1 / (1 + abs(z)) ** 2),
    "gelu": Case(Gelu(), lambda z: z * mp.erfc(-z / mp.sqrt(2)) / 2, _gelu_slope),
    "gelu, tanh": Case(GeluTanh(), lambda z: z * _gate(z)[0], lambda z: _gate(z)[0] + z * _gate(z)[1]),
    "silu": Case(Silu(), lambda z: z * _sigmoid(z), lambda z: _sigmoid(z) * (1 + z * _sigmoid(-z))),
    "mish": Case(Mish(), lambda z: z * _mish(z)[0], lambda z: _mish(z)[0] + z * _mish(z)[1]),
    "hardswish": Case(
        Hardswish(),
        lambda z: z * min(max(z + 3, mpf(0)), mpf(6)) / 6,
        lambda z: mpf(z > 3) if abs(z) > 3 else (2 * z + 3) / 6,
    ),
    "exp": Case(Exp(), mp.exp, mp.exp, (-700, 300)),
    "log": Case(Log(), mp.log, lambda z: 1 / z, (1e-9, 1e6)),
    "square root": _power(0.5, 0.0, 1e6),
    "reciprocal root": _power(-0.5, 1e-9, 1e6),
    "reciprocal": _power(-1.0, 1e-6, 1e6),
    "reciprocal, left": _power(-1.0, -1e6, -1e-6),
    "square": _power(2.0, -1e6, 1e6),
    "cube": _power(3.0),
    "fourth power": _power(4.0),
    "power -2": _power(-2.0, 1e-3, 1e3),
    "power -2, left": _power(-2.0, -1e3, -1e-3),
    "power -3, left": _power(-3.0, -1e3, -1e-3),
    "power 1.5": _power(1.5, 0.0, 1e6),
    "power 0.3": _power(0.3, 0.0, 1e6),
    "power 2.7": _power(2.7, 0.0, 1e3),
    "sine": Case(Sine(), mp.sin, mp.cos),
    "cosine": Case(Sine(quarter=True), mp.cos, lambda z: -mp.sin(z)),
}
"""The activations, by name."""


def intervals(case: Case, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw intervals: from a single number or one unit in the last place up to 1e6 wide, anywhere and at joints."""
    random = torch.Generator().manual_seed(seed)
    uniform = lambda: torch.rand(n, dtype=torch.float64, generator=random)  # noqa: E731
    anywhere = (2 * uniform() - 1) * 10 ** (9 * uniform() - 4)
    near = torch.cat(
        [torch.cat([p.reshape(-1) for p in part]) for part in _special(case.f) if part] or [torch.zeros(1)]
    )
    special = near[torch.randint(len(near), (n,), generator=random)].double()
    shift = 10 ** (16 * uniform() - 14) * (2 * uniform() - 1) * (uniform() < 0.5)
    centre = torch.where(uniform() < 0.4, anywhere, special + shift)
    centre = torch.where(uniform() < 0.4, (2 * uniform() - 1) * 5, centre)
    width = 10 ** (22 * uniform() - 16) * (uniform() < 0.97)
    width = torch.where(uniform() < 0.5, 10 ** (4 * uniform() - 2), width)
    share = uniform()
    share = torch.where(uniform() < 0.2, share.round(), share)  # an end at the special point
    low, high = centre - share * width, centre + (1 - share) * width
    ulp = uniform() < 0.05
    high = torch.where(ulp, low.nextafter(torch.full_like(low, torch.inf)), high)
    low, high = low.clamp(*case.domain), high.clamp(*case.domain)
    return torch.minimum(low, high), torch.maximum(low, high)


def _special(f: Activation) -> tuple[list[Tensor], list[Tensor]]:
    zero = torch.zeros((), dtype=torch.float64)
    return list(f.joints_near(zero)), list(f.turning_near(zero))


def exact(number: Tensor | float) -> mpf:
    """Return a double as it is."""
    return mpf(float(number))
