"""Activations: values, slopes and how they bend, against mpmath with 60 digits."""

import math
from itertools import pairwise

import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor
from torch.nn import functional as F

from certbench.errors import ConfigError, UnsupportedError
from certbench.networks.activations import CONVEX, LINEAR
from certbench.networks.curves import Elu, Power, Sine, Softplus, power
from certbench.networks.gated import Gelu
from certbench.networks.piecewise_linear import (
    IDENTITY,
    RELU,
    PiecewiseLinear,
    clamp,
    leaky_relu,
    piecewise_linear,
    prelu,
)
from certbench.networks.s_shaped import Sigmoid
from tests.support.functions import CASES, DIGITS, Case, exact

EXTREMES = [
    0.0,
    5e-324,
    1e-300,
    1e-17,
    1e-8,
    20.0,
    37.5,
    38.4,
    40.0,
    99.0,
    101.0,
    700.0,
    710.0,
    746.0,
    1e6,
    1e15,
    1e100,
]
"""Points where functions underflow, overflow or saturate, or where formulas change."""


def points(case: Case, n: int) -> Tensor:
    """Draw points of all magnitudes, extremes, and what lies around joints."""
    random = torch.Generator().manual_seed(1)
    sizes = 10 ** (torch.rand(n, dtype=torch.float64, generator=random) * 12 - 8)
    near = torch.randn(2 * n, dtype=torch.float64, generator=random) * 4
    extremes = torch.tensor(EXTREMES, dtype=torch.float64)
    joints = torch.stack([*case.f.joints_near(near[0] * 0), *case.f.turning_near(near[0] * 0), near[0] * 0]).reshape(-1)
    around = torch.cat([joints, joints.nextafter(joints + 1), joints.nextafter(joints - 1), joints + 1e-9])
    z = torch.cat([sizes, -sizes, near, extremes, -extremes, around])
    low, high = case.domain
    if isinstance(case.f, Sine):  # lines use it up to 2^20
        return z[z.abs() <= 2**20]
    if isinstance(case.f, Power):
        z = z[(z.abs() >= 1e-30) & (z.abs() <= 1e30)] if not case.f.exponent > 0 else z[z.abs() <= 1e30]
        return z[(z >= 0) & (z >= low)] if low >= 0 else z[(z < 0) | (high > 0)]
    return z[(z > 0) | (case.f.name != "Log")]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("n", [100, pytest.param(5000, marks=pytest.mark.slow)])
def test_values_and_slopes_are_off_by_no_more_than_they_say(name: str, n: int) -> None:
    case = CASES[name]
    z = points(case, n)
    value, slope = case.f.value(z), case.f.slope(z)
    error, slope_error = case.f.error(z, value), case.f.slope_error(z, slope)
    joints = {float(joint) for joint in case.f.joints_near(z[0] * 0)}
    with mp.workdps(700 if isinstance(case.f, PiecewiseLinear) else DIGITS):  # z - 1 with z = 5e-324
        for i, point in enumerate(z.tolist()):
            if value[i].isfinite():
                assert abs(exact(value[i]) - case.value(mpf(point))) <= exact(error[i]), point
            if slope[i].isfinite() and point not in joints:
                assert abs(exact(slope[i]) - case.slope(mpf(point))) <= exact(slope_error[i]), point


@pytest.mark.parametrize("name", CASES)
def test_error_bounds_are_small(name: str) -> None:
    """They cost tightness; a bound that is not small would also hide a wrong formula."""
    case = CASES[name]
    z = torch.linspace(max(-6, case.domain[0]), min(6, case.domain[1]), 101, dtype=torch.float64)
    value, slope = case.f.value(z), case.f.slope(z)
    assert (case.f.error(z, value) <= 1e-13 * (1 + value.abs())).all()
    good = slope.isfinite()
    assert (case.f.slope_error(z, slope)[good] <= 1e-11 * (1 + slope[good].abs())).all()


@pytest.mark.parametrize("name", CASES)
def test_pieces_bend_as_they_say(name: str) -> None:
    """The slope in mpmath rises on convex pieces, falls on concave ones, and stays on linear ones.

    It does so up to one unit in the last place before each joint: the joints are the nearest doubles.
    """
    case = CASES[name]
    zero = torch.zeros((), dtype=torch.float64)
    start, end = (-60.0, 60.0) if name not in ("sine", "cosine") else (0.0, 2 * math.pi + 1)
    start, end = max(start, case.domain[0]), min(end, case.domain[1])
    edges = [start, *(float(joint) for joint in case.f.joints_near(zero)), end]
    if name in ("cosine",):
        edges[0] = -math.pi / 2
    assert len(edges) == len(case.f.bends) + 1 or name in ("sine", "cosine")
    with mp.workdps(400):
        for left, right, bend in zip(edges, edges[1:], case.f.bends, strict=False):
            if left >= right:
                continue
            inside = torch.linspace(left, right, 203, dtype=torch.float64)[1:-1].tolist()
            first = math.nextafter(left, right)
            last = math.nextafter(right, left)
            inside = [first, math.nextafter(first, right), *inside, math.nextafter(last, left), last]
            slopes = [case.slope(mpf(z)) for z in inside]
            steps = [b - a for a, b in pairwise(slopes)]
            if bend == LINEAR:
                assert all(step == 0 for step in steps)
            else:
                assert all(step * bend >= 0 for step in steps)
                assert sum(steps) * bend > 0


@pytest.mark.parametrize("name", CASES)
def test_functions_are_monotone_between_turning_points(name: str) -> None:
    case = CASES[name]
    zero = torch.zeros((), dtype=torch.float64)
    turning = [float(point) for point in case.f.turning_near(zero)]
    ends = max(-60.0, case.domain[0]), min(60.0, case.domain[1])
    edges = turning if isinstance(case.f, Sine) else [ends[0], *turning, ends[1]]
    for left, right in pairwise(edges):
        slopes = [case.slope(mpf(z)) for z in torch.linspace(left, right, 203, dtype=torch.float64)[1:-1].tolist()]
        assert all(slope >= 0 for slope in slopes) or all(slope <= 0 for slope in slopes)
    low, high = case.f.limits
    values = [case.value(mpf(z)) for z in torch.linspace(edges[0], edges[-1], 101, dtype=torch.float64).tolist()]
    assert all(low <= value <= high for value in values)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if any(case.f.bends)])
def test_the_tangent_points_have_the_slope_asked_for(name: str) -> None:
    case = CASES[name]
    low, high = max(case.domain[0], -4.0), min(case.domain[1], 4.0)
    z = torch.linspace(low, high, 401, dtype=torch.float64)[1:-1]
    zero = z[0] * 0 if name not in ("sine", "cosine") else z
    joints = case.f.joints_near(zero)
    slope = case.f.slope(z)
    edges = [torch.tensor(-torch.inf), *joints, torch.tensor(torch.inf)]
    for piece, bend in enumerate(case.f.bends):
        here = (z > edges[piece]) & (z < edges[piece + 1])
        if bend == LINEAR or not here.any():
            continue
        found = case.f.touch(slope, piece, zero)
        assert (case.f.slope(found) - slope)[here].abs().max() < 2e-6 * (1 + slope[here].abs().max())


def test_values_are_those_of_torch() -> None:
    z = torch.linspace(-30, 30, 1001, dtype=torch.float64)
    pairs = {
        "relu": F.relu, "leaky relu": F.leaky_relu, "relu6": F.relu6, "hardtanh": F.hardtanh, "abs": torch.abs,
        "clamp above": lambda z: z.clamp(max=0.3), "hardsigmoid": F.hardsigmoid, "elu": F.elu, "selu": F.selu,
        "celu": lambda z: F.celu(z, 2.0), "log-sigmoid": F.logsigmoid, "sigmoid": torch.sigmoid, "tanh": torch.tanh,
        "erf": torch.erf, "atan": torch.atan, "softsign": F.softsign, "gelu": F.gelu, "silu": F.silu, "mish": F.mish,
        "gelu, tanh": lambda z: F.gelu(z, approximate="tanh"), "hardswish": F.hardswish, "exp": torch.exp,
        "square": torch.square, "sine": torch.sin, "cosine": torch.cos,
    }  # fmt: skip
    for name, program in pairs.items():
        assert torch.allclose(CASES[name].f.value(z), program(z), rtol=1e-13, atol=1e-14), name
    positive = z.abs() + 0.01
    roots = {
        "square root": torch.sqrt,
        "reciprocal root": torch.rsqrt,
        "reciprocal": torch.reciprocal,
        "log": torch.log,
    }
    for name, program in roots.items():
        assert torch.allclose(CASES[name].f.value(positive), program(positive), rtol=1e-13, atol=1e-14), name


@pytest.mark.parametrize("beta, threshold", [(1.0, 20.0), (3.0, 5.0), (0.5, 0.0), (1.0, 1.0)])
def test_torch_falls_below_softplus_by_no_more_than_the_excess(beta: float, threshold: float) -> None:
    f = Softplus(beta, threshold)
    z = torch.cat([torch.linspace(-50, 50, 20001), torch.linspace(-1e-6, 1e-6, 101) + threshold / beta]).double()
    fall = f.value(z) - F.softplus(z, beta, threshold)
    lag = f.excess(z, z)
    assert lag is not None
    assert (fall <= lag + 2 * f.error(z, f.value(z))).all() and (fall >= -2 * f.error(z, f.value(z))).all()
    everywhere = f.excess(z.min(), z.max())
    assert everywhere is not None and (everywhere >= lag).all()


def test_a_slope_per_neuron() -> None:
    slopes = torch.tensor([0.25, -1.0, 2.0])
    z = torch.randn(5, 3, dtype=torch.float64)
    f = prelu(slopes)
    assert torch.equal(f.value(z), torch.where(z > 0, z, slopes.double() * z))
    assert torch.equal(f.at(torch.tensor([2, 0])).value(z[:, [2, 0]]), f.value(z)[:, [2, 0]])
    assert torch.equal(f.slope(z), torch.where(z > 0, 1.0, slopes.double().expand(5, 3)))
    assert RELU.at(torch.tensor([1])) == RELU and Sigmoid().at(torch.tensor([0])) == Sigmoid()


def test_functions_are_equal_by_content() -> None:
    assert clamp(0.0) == RELU == piecewise_linear([0.0], [0.0, 1.0], 0.0, "other name") and hash(clamp(0)) == hash(RELU)
    assert leaky_relu(0.1) != leaky_relu(0.2) and leaky_relu(0.0) == RELU
    assert prelu(torch.tensor([0.1, 0.2])) == prelu(torch.tensor([0.1, 0.2])) != prelu(torch.tensor([0.1, 0.3]))
    assert Elu() == Elu(1.0) != Elu(2.0) and hash(Elu()) == hash(Elu(1.0)) and Gelu() == Gelu()
    assert power(1.0) == IDENTITY and power(2) == Power(2.0) and float(power(0.0).value(torch.ones(()))) == 1


def test_parameters_that_make_no_such_function_are_refused() -> None:
    for wrong in (
        lambda: Elu(-1.0),
        lambda: Softplus(0.0),
        lambda: power(math.nan),
        lambda: power(1e9),
        lambda: Power(1.0),
    ):
        with pytest.raises(UnsupportedError):
            wrong()
    for wrong in (
        lambda: clamp(math.nan, 1.0),
        lambda: piecewise_linear([1.0, 0.0], [1.0, 2.0, 3.0], 0.0),
        lambda: piecewise_linear([0.0], [1.0], 0.0),
        lambda: leaky_relu(math.inf),
    ):
        with pytest.raises(ConfigError):
            wrong()


def test_clamps_as_torch_does() -> None:
    z = torch.linspace(-3, 3, 61, dtype=torch.float64)
    for low, high in [
        (-1.0, 1.0),
        (None, 0.5),
        (0.5, None),
        (2.0, -1.0),
        (1.0, 1.0),
        (-math.inf, math.inf),
        (-math.inf, 1.0),
    ]:
        assert torch.equal(
            clamp(low, high).value(z),
            z.clamp(low if low is not None else -math.inf, high if high is not None else math.inf),
        )


def test_limits_at_infinity() -> None:
    infinite = torch.tensor([-torch.inf, torch.inf], dtype=torch.float64)
    for name in ("gelu", "gelu, tanh", "silu", "mish", "hardswish", "relu"):
        assert CASES[name].f.value(infinite).tolist() == [0, math.inf] and CASES[name].f.slope(infinite).tolist() == [
            0,
            1,
        ]
    for name in ("sigmoid", "tanh", "erf", "softsign", "atan"):
        assert CASES[name].f.value(infinite).tolist() == pytest.approx(list(CASES[name].f.limits), rel=1e-15)
        assert CASES[name].f.slope(infinite).tolist() == [0, 0]


def test_no_piece_bends_in_a_piecewise_linear_function() -> None:
    assert isinstance(RELU, PiecewiseLinear) and CONVEX not in RELU.bends
    with pytest.raises(NotImplementedError):
        RELU.touch(torch.zeros(1), 0, torch.zeros(1))
