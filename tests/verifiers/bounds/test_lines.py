"""Lines around activations: sound at every point, exactly; tight; the ReLU's own; planes around products.

The file is long because one exact check serves all functions.
"""

import math

import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor

from certbench.networks.curves import Exp, Log, Power, Sine, Softplus
from certbench.networks.gated import Gelu
from certbench.networks.piecewise_linear import ABS, RELU, leaky_relu, prelu
from certbench.networks.s_shaped import Sigmoid, Tanh
from certbench.verifiers.bounds import lines
from certbench.verifiers.bounds.lines import Lines
from certbench.verifiers.bounds.supports import Sides
from tests.support.functions import CASES, DIGITS, Case, exact, intervals

BLOCK = 2**16
"""Number of points that are checked at a time: they fit a cache."""

FEW = torch.linspace(0, 1, 33, dtype=torch.float64)
"""Shares of an interval around the place where a line is closest."""

SMOOTH = [name for name in CASES if name != "relu"]
"""Names of the functions whose lines are rounded outward here; those of a ReLU are not."""


def worst(case: Case, low: Tensor, high: Tensor, found: Lines, points: int) -> tuple[Tensor, Tensor]:
    """Check the lines at evenly spread points and where f comes closest to them; return these, below and above.

    The least of f(z) - s z - b over the points is sought again around its place, twice. It must not be negative by more
    than the check's own rounding: that of f, which it states, and 4 units of roundoff of |f|, |s z| and |b|.
    """
    assert found.lower_offset is not None
    spread, sides = torch.linspace(0, 1, points, dtype=torch.float64), []
    for some in torch.arange(len(low)).split(max(BLOCK // points, 1)):
        ends = low[some, None], high[some, None]
        z = between(*ends, *ends, spread)
        value, closest = case.f.value(z), []
        for sign, slope, offset in ((1, found[0], found[1]), (-1, found[2], found[3])):
            line = slope[some, None], offset[some, None]
            place = nearest(case, z, value, *line, sign)
            for step in (1 / (points - 1), 1 / (points - 1) / 16):
                step = step * (ends[1] - ends[0])
                around = between(*ends, torch.maximum(ends[0], place - step), torch.minimum(ends[1], place + step), FEW)
                place = nearest(case, around, case.f.value(around), *line, sign)
            closest.append(place[:, 0])
        sides.append(closest)
    return torch.cat([below for below, _ in sides]), torch.cat([above for _, above in sides])


def between(low: Tensor, high: Tensor, first: Tensor, last: Tensor, share: Tensor) -> Tensor:
    """Return points of [first, last], within [low, high] whatever rounding does."""
    z = torch.lerp(first, last, share)
    torch.maximum(z, low, out=z)
    return torch.minimum(z, high, out=z)


def nearest(case: Case, z: Tensor, value: Tensor, slope: Tensor, offset: Tensor, sign: int) -> Tensor:
    """Return the point of each row at which f comes closest to the line, after a check of all of them."""
    gap = torch.addcmul(offset, slope, z)
    gap = torch.sub(value, gap, out=gap) if sign == 1 else torch.sub(gap, value, out=gap)
    least, place = gap.min(1, keepdim=True)
    rows = (least < 0)[:, 0]
    if rows.any():
        z_, value_, line = z[rows], value[rows], slope[rows] * z[rows]
        own = case.f.error(z_, value_) + 2.0**-51 * (value_.abs() + line.abs() + offset[rows].abs())
        bad = gap[rows] < -own
        assert not bad.any(), (z_[bad][0], slope[rows][bad.any(1)][0], offset[rows][bad.any(1)][0])
    return z.gather(1, place)


def holds_exactly(case: Case, slope: Tensor, offset: Tensor, z: Tensor, sign: int) -> None:
    """Compare f and a line at points in mpmath; nothing is allowed for."""
    with mp.workdps(700 if case.f.name in ("Abs", "Clamp") else DIGITS):
        for s, b, point in zip(slope.tolist(), offset.tolist(), z.tolist(), strict=True):
            if math.isfinite(b):
                gap = (case.value(mpf(point)) - mpf(s) * mpf(point) - mpf(b)) * sign
                assert gap >= 0, (point, s, b, mp.nstr(gap, 5))


def check(case: Case, low: Tensor, high: Tensor, found: Lines, points: int, samples: int) -> None:
    below, above = worst(case, low, high, found, points)
    assert found.lower_offset is not None
    every = max(len(low) // samples, 1)
    for z in (low, high, below, above):
        holds_exactly(case, found.lower_slope[::every], found.lower_offset[::every], z[::every], 1)
        holds_exactly(case, found.upper_slope[::every], found.upper_offset[::every], z[::every], -1)


@pytest.mark.parametrize("name", SMOOTH)
def test_lines_are_sound(name: str) -> None:
    """The tightest lines, parallel ones, and those of any slope."""
    case = CASES[name]
    low, high = intervals(case, 3000)
    check(case, low, high, lines.tightest(case.f, low, high), 33, 100)
    check(case, low, high, lines.parallel(case.f, low, high), 33, 30)
    least, largest = lines.slopes(case.f, low, high)
    share = torch.rand(2, len(low), dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 1.5 - 0.25
    below, above = ((least + part * (largest - least)).nan_to_num(1.0, 1.0, -1.0).clamp(-1e30, 1e30) for part in share)
    any_ = Lines(below, lines.below(case.f, low, high, below), above, lines.above(case.f, low, high, above))
    check(case, low, high, any_, 33, 30)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOOTH)
def test_lines_of_a_million_intervals_are_sound(name: str) -> None:
    case = CASES[name]
    for seed in range(100):
        low, high = intervals(case, 10_000, seed + 10)
        check(case, low, high, lines.tightest(case.f, low, high), 1001, 5)


@pytest.mark.parametrize("name", CASES)
def test_ranges_and_slopes_are_sound(name: str) -> None:
    case = CASES[name]
    low, high = intervals(case, 2000, 3)
    z = torch.lerp(low[:, None], high[:, None], torch.linspace(0, 1, 65, dtype=torch.float64))
    z = torch.minimum(torch.maximum(z, low[:, None]), high[:, None])
    value, slope = case.f.value(z), case.f.slope(z)
    least, largest = (end[:, None] for end in lines.enclose(case.f, low, high))
    error = 2 * case.f.error(z, value)
    assert ((least <= value + error) & (largest >= value - error)).all()
    flat, steep = (end[:, None] for end in lines.slopes(case.f, low, high))
    error = 2 * case.f.slope_error(z, slope).nan_to_num(0.0)
    inside = (z > low[:, None]) & (z < high[:, None])
    assert ((flat <= slope + error) & (steep >= slope - error) | ~inside).all()
    with mp.workdps(DIGITS):
        for i in range(0, 2000, 20):
            for point in (low[i], high[i], z[i, 30]):
                assert exact(least[i]) <= case.value(exact(point)) <= exact(largest[i])
            if low[i] < high[i]:
                last, first = case.value(exact(high[i])), case.value(exact(low[i]))
                width = exact(high[i]) - exact(low[i])
                chord, allowed = (last - first) / width, (abs(last) + abs(first)) / width * mpf(10) ** (5 - DIGITS)
                assert exact(flat[i]) - allowed <= chord <= exact(steep[i]) + allowed


@pytest.mark.parametrize("name", SMOOTH)
def test_no_line_is_higher_in_the_middle(name: str) -> None:
    """The lower line supports the convex envelope at the middle m: chords that pass below f's graph at m touch it."""
    case = CASES[name]
    low, high = intervals(case, 4000, 4)
    good = (high - low > 1e-3) & (high - low < 6) & (low.abs() < 100)
    low, high = low[good], high[good]
    found = lines.tightest(case.f, low, high)
    middle = low / 2 + high / 2
    z = torch.lerp(low[:, None], high[:, None], torch.linspace(0, 1, 161, dtype=torch.float64))
    value = case.f.value(z)
    left, right, at_left, at_right = z[:, None, :80], z[:, 81:, None], value[:, None, :80], value[:, 81:, None]
    chords = at_left + (at_right - at_left) / (right - left) * (middle[:, None, None] - left)
    between = torch.cat([chords.flatten(1), value[:, 80:81]], dim=1)
    # The points of the grid are 1/160 of the width apart, and may miss those that the line touches.
    scale = value.amax(1) - value.amin(1) + 1e-3 * (high - low)
    below = found.lower_slope * middle + found.lower_offset
    above = found.upper_slope * middle + found.upper_offset
    lag = case.f.excess(low, high)
    lag = torch.zeros_like(low) if lag is None else lag
    assert ((between.amin(1) - below - lag) <= 0.01 * scale).all()
    assert ((above - between.amax(1)) <= 0.01 * scale).all()
    assert ((between.amin(1) - below - lag) / scale).mean() < 3e-4
    assert ((above - between.amax(1)) / scale).mean() < 3e-4


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "gelu", "gelu, tanh", "silu", "mish"])
def test_lines_of_tables_are_those_of_the_search(name: str) -> None:
    """They are as high in the middle as lines found by steps; ends next to 0 and far ones are where tables are hard."""
    case = CASES[name]
    ends = intervals(case, 3000, 6)
    near = 10.0 ** torch.linspace(-9, 0.5, 400, dtype=torch.float64)
    far = 10.0 ** torch.linspace(0, 5, 400, dtype=torch.float64).roll(97)
    low, high = torch.cat([ends[0], -far, near, -near, -far]), torch.cat([ends[1], -near, near + far, far, near])
    found, middle = lines.tightest(case.f, low, high), low / 2 + high / 2
    slope, offset = Sides.of(case.f, low, high).tightest(*lines.slopes(case.f, low, high))
    assert found.lower_offset is not None
    allowed = 1e-6 + 1e-12 * middle.abs()
    assert (found.lower_slope * middle + found.lower_offset >= slope[0] * middle + offset[0] - allowed).all()
    assert (found.upper_slope * middle + found.upper_offset <= -(slope[1] * middle + offset[1]) + allowed).all()


@pytest.mark.parametrize("name", SMOOTH)
def test_offsets_of_a_given_slope_are_tight(name: str) -> None:
    """They are the minimum over a fine grid, up to the grid: kinks lie between its points."""
    case = CASES[name]
    low, high = intervals(case, 2000, 5)
    good = (high - low > 1e-3) & (high - low < 6) & (low.abs() < 100)
    low, high = low[good], high[good]
    least, largest = (end.clamp(-1e3, 1e3) for end in lines.slopes(case.f, low, high))
    z = torch.lerp(low[:, None], high[:, None], torch.linspace(0, 1, 1001, dtype=torch.float64))
    value, lag = case.f.value(z), case.f.excess(low, high)
    lag = torch.zeros_like(low) if lag is None else lag
    for share in (-0.3, 0.0, 0.3, 0.6, 1.0, 1.2):
        slope = least + share * (largest - least)
        tilted = value - slope[:, None] * z
        below, above = lines.below(case.f, low, high, slope), lines.above(case.f, low, high, slope)
        scale = tilted.amax(1) - tilted.amin(1) + (high - low) * (0.01 + largest - least)
        assert ((tilted.amin(1) - below - lag) <= 1e-3 * scale).all()
        assert ((above - tilted.amax(1)) <= 1e-3 * scale).all()


def test_derivatives_are_those_of_the_minimum() -> None:
    f, low, high = Tanh(), torch.tensor([-2.0]).double(), torch.tensor([3.0]).double()
    slope = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    for side in (lines.below, lines.above):
        offset = side(f, low, high, slope)
        assert torch.equal(offset, side(f, low, high, slope.detach()))
        (found,) = torch.autograd.grad(offset.sum(), slope)
        step = 1e-5
        ends = [side(f, low, high, slope.detach() + shift) for shift in (step, -step)]
        assert float(found) == pytest.approx(float((ends[0] - ends[1]) / (2 * step)), rel=1e-4)


def test_shapes_broadcast() -> None:
    low, high = torch.rand(3, 1, 5).double() - 1, torch.rand(3, 1, 5).double()
    slope = torch.rand(3, 4, 5).double()
    for f in (RELU, leaky_relu(0.1), Gelu(), prelu(torch.rand(5))):
        found = lines.below(f, low, high, slope)
        assert found.shape == (3, 4, 5)
        assert torch.equal(found[:, 1], lines.below(f, low[:, 0], high[:, 0], slope[:, 1]))


def test_a_slope_per_neuron() -> None:
    slopes = torch.tensor([0.2, -0.5, 1.5])
    low, high = -torch.rand(50, 3).double(), torch.rand(50, 3).double()
    together = lines.tightest(prelu(slopes), low, high)
    for i in range(3):
        alone = lines.tightest(leaky_relu(float(slopes[i])), low[:, i], high[:, i])
        assert all(
            torch.equal(a[:, i], b) for a, b in zip(together, alone, strict=True) if a is not None and b is not None
        )


def test_lines_of_a_relu_are_the_engines() -> None:
    case = CASES["relu"]
    low, high = intervals(case, 3000)
    above, offset = lines.upper_line(low, high)
    below = lines.lower_slope(low, high, None)
    found = lines.tightest(RELU, low, high)
    assert torch.equal(found.lower_slope, below) and torch.equal(found.upper_slope, above)
    assert found.lower_offset is not None and not found.lower_offset.any() and torch.equal(found.upper_offset, offset)
    assert torch.equal(lines.above(RELU, low, high, above), offset)
    chosen = lines.lower_slope(low, high, torch.rand(3000, dtype=torch.float64))
    assert not lines.below(RELU, low, high, chosen).any()
    same = lines.parallel(RELU, low, high)
    assert torch.equal(same.lower_slope, above) and torch.equal(same.upper_offset, offset)
    # Other slopes are sound too.
    z = torch.lerp(low, high, torch.rand(64, 3000, dtype=torch.float64)).clamp(low, high)
    for slope in (torch.full_like(low, -0.5), torch.full_like(low, 0.4), torch.full_like(low, 1.5)):
        allowed = 1e-15 * (z.abs() + low.abs() + high.abs())
        assert (slope * z + lines.below(RELU, low, high, slope) <= z.clamp(min=0) + allowed).all()
        assert (slope * z + lines.above(RELU, low, high, slope) >= z.clamp(min=0) - allowed).all()


@pytest.mark.parametrize("name", CASES)
def test_nan_stays_and_what_is_undefined_is_infinite(name: str) -> None:
    f = CASES[name].f
    nan, one = torch.tensor([torch.nan, 1.0, torch.nan]).double(), torch.tensor([2.0, torch.nan, torch.nan]).double()
    if CASES[name].domain[1] <= 0:
        nan, one = nan - 4, one - 4
    for found in (lines.tightest(f, nan, one), lines.parallel(f, nan, one)):
        assert found.upper_offset.isnan().all() or name == "relu"
        assert (found.upper_slope * 0 + found.upper_offset).isnan().all()
        assert found.lower_offset is not None
        assert (found.lower_slope * 0 + found.lower_offset).isnan().all() or name == "relu"
    assert all(end.isnan().all() for end in (*lines.enclose(f, nan, one), *lines.slopes(f, nan, one)))
    slope = torch.zeros(3, dtype=torch.float64)
    if name != "relu":
        assert lines.below(f, nan, one, slope).isnan().all() and lines.above(f, nan, one, slope).isnan().all()


@pytest.mark.parametrize("f", [Log(), Power(0.5), Power(-0.5), Power(-1.0), Power(-2.0), Power(1.5), Power(-3.0)])
def test_outside_the_domain_all_bounds_are_infinite(f: Log | Power) -> None:
    low, high = torch.tensor([[-1.0, -1.0, -1e-300], [2.0, 1e-300, 5.0]], dtype=torch.float64)
    found = lines.tightest(f, low, high)
    same = lines.parallel(f, low, high)
    slope = torch.rand(3, dtype=torch.float64)
    below, above = lines.below(f, low, high, slope), lines.above(f, low, high, slope)
    least, largest = lines.enclose(f, low, high)
    for lower in (found.lower_offset, same.lower_offset, below, least, lines.slopes(f, low, high)[0]):
        assert lower is not None and (lower == -torch.inf).all()
    for upper in (found.upper_offset, same.upper_offset, above, largest, lines.slopes(f, low, high)[1]):
        assert (upper == torch.inf).all()
    assert not any(part is None or part.isnan().any() for part in (*found, *same))


@pytest.mark.parametrize("name", SMOOTH)
def test_infinite_and_huge_ends(name: str) -> None:
    """No NaN; lines stay below and above at points far out; bounded functions keep finite constants."""
    case = CASES[name]
    infinite = torch.inf
    ends = [
        (-infinite, infinite),
        (-infinite, 1.0),
        (-1.0, infinite),
        (-1e30, 1e30),
        (-1e30, 1.0),
        (0.5, 1e30),
        (1e29, 1e30),
    ]
    if case.domain[0] >= 0:
        ends = [(0.5, infinite), (1e-30, 1e30), (1e-5, 1e30), (1e29, 1e30)]
    if case.domain[1] <= 0:
        ends = [(-infinite, -0.5), (-1e30, -1e-30)]
    low, high = torch.tensor(ends, dtype=torch.float64).T
    z = torch.cat([torch.linspace(-8, 8, 41), torch.tensor([1e29, 9e29, -1e29, 1e15, -1e15, 1e4, -1e4])]).double()[
        :, None
    ]
    z = z.clamp(low, high)
    value = case.f.value(z)
    for found in (lines.tightest(case.f, low, high), lines.parallel(case.f, low, high)):
        assert found.lower_offset is not None
        assert not any(part is None or part.isnan().any() for part in found)
        assert found.lower_slope.isfinite().all() and found.upper_slope.isfinite().all()
        good = value.isfinite()
        own = case.f.error(z, value) + 1e-15 * value.abs()
        below, above = found.lower_slope * z, found.upper_slope * z
        assert (below + found.lower_offset <= value + own + 1e-15 * below.abs())[good].all()
        assert (above + found.upper_offset >= value - own - 1e-15 * above.abs())[good].all()
    bottom = case.f.limits[0]
    if bottom > -math.inf:
        constant = lines.tightest(case.f, low, high)
        middle = torch.where((low + high).isfinite(), low / 2 + high / 2, 0.0).clamp(low, high)
        size = 1 + torch.where(low.isfinite(), low.abs(), 0.0) + torch.where(high.isfinite(), high.abs(), 0.0)
        lag = case.f.excess(low, high)
        assert constant.lower_offset is not None
        line = constant.lower_slope * middle + constant.lower_offset + (0.0 if lag is None else lag)
        assert (line >= bottom - 1e-12 * size).all()


def test_lines_are_asymptotic_where_pieces_are_linear() -> None:
    low, high = (
        torch.tensor([-1.0, -torch.inf, -torch.inf]).double(),
        torch.tensor([torch.inf, 1.0, torch.inf]).double(),
    )
    found = lines.tightest(ABS, low, high)
    assert found.lower_offset is not None
    assert found.lower_slope.tolist()[:2] == [1, -1] and found.lower_offset.abs().max() < 1e-15
    assert found.upper_slope[0] == 1 and float(found.upper_offset[0]) == pytest.approx(2)
    assert found.upper_offset[2] == torch.inf
    kept = lines.above(leaky_relu(0.5), low, high, torch.tensor([1.0, 0.5, 1.0]).double())
    assert kept[:2].tolist() == pytest.approx([0.5, 0.5]) and kept[2] == torch.inf


def test_long_intervals_of_waves_have_constants() -> None:
    low, high = torch.tensor([-10.0, 1e7, 0.0]).double(), torch.tensor([10.0, 1e7 + 1, 6.0]).double()
    found = lines.tightest(Sine(), low, high)
    assert found.lower_offset is not None
    assert found.lower_slope.tolist()[:2] == [0, 0] and found.lower_offset.tolist()[:2] == [-1, -1]
    assert found.upper_offset.tolist()[:2] == [1, 1] and found.upper_slope[2] != 0


def test_both_softplus_functions_lie_between_the_lines() -> None:
    f = Softplus(1.0, 2.0)
    low, high = torch.tensor([-1.0, 1.9, 2.5]).double(), torch.tensor([5.0, 2.1, 4.0]).double()
    found = lines.tightest(f, low, high)
    assert found.lower_offset is not None
    z = torch.lerp(low, high, torch.linspace(0, 1, 1001, dtype=torch.float64)[:, None])
    for value in (f.value(z), torch.nn.functional.softplus(z, 1.0, 2.0)):
        assert (found.lower_slope * z + found.lower_offset <= value + 1e-15).all()
        assert (found.upper_slope * z + found.upper_offset >= value - 1e-15).all()
    assert (lines.enclose(f, low, high)[0] <= torch.nn.functional.softplus(z, 1.0, 2.0)).all()


def test_convex_functions_have_their_tangent_and_their_chord() -> None:
    low, high = torch.tensor([-1.0]).double(), torch.tensor([2.0]).double()
    found = lines.tightest(Exp(), low, high)
    slope = math.exp(0.5)
    assert found.lower_offset is not None
    assert float(found.lower_slope) == pytest.approx(slope) and float(found.lower_offset) == pytest.approx(slope * 0.5)
    chord = (math.exp(2) - math.exp(-1)) / 3
    assert float(found.upper_slope) == pytest.approx(chord)
    assert float(found.upper_offset) == pytest.approx(math.exp(-1) + chord)


def test_a_tangent_from_an_end() -> None:
    """From the left end of [-1, 5] the line above a sigmoid touches where f(t) - f(-1) = f'(t) (t + 1)."""
    found = lines.tightest(Sigmoid(), torch.tensor([-3.0]).double(), torch.tensor([5.0]).double())
    start = 1 / (1 + math.exp(3))
    assert float(found.upper_slope * -3 + found.upper_offset) == pytest.approx(start, abs=1e-9)
    with mp.workdps(30):
        touch = mp.findroot(lambda t: CASES["sigmoid"].value(t) - start - CASES["sigmoid"].slope(t) * (t + 3), 1.5)
        assert float(found.upper_slope) == pytest.approx(float(CASES["sigmoid"].slope(touch)), abs=1e-9)


def test_in_float32_lines_are_close() -> None:
    case = CASES["gelu"]
    low, high = -torch.rand(100) * 3, torch.rand(100) * 3
    small, large = lines.tightest(case.f, low, high), lines.tightest(case.f, low.double(), high.double())
    for a, b in zip(small, large, strict=True):
        assert a is not None and b is not None and a.dtype == torch.float32
    middle = (low + high).double() / 2
    for s, b, t, c in ((small[0], small[1], large[0], large[1]), (small[2], small[3], large[2], large[3])):
        assert b is not None and c is not None
        assert ((s.double() * middle + b.double()) - (t * middle + c)).abs().max() < 1e-4


@pytest.mark.parametrize("mix", [0.0, 0.3, 0.5, 1.0])
def test_planes_around_a_product_are_sound_and_touch(mix: float) -> None:
    random = torch.Generator().manual_seed(6)
    centre = torch.randn(2, 2000, dtype=torch.float64, generator=random) * 10
    width = 10 ** (torch.rand(2, 2000, dtype=torch.float64, generator=random) * 20 - 17)
    (low_x, low_y), (high_x, high_y) = centre - width, centre + width
    found = lines.product(low_x, high_x, low_y, high_y, mix, 1 - mix)
    with mp.workdps(DIGITS):
        for i in range(0, 2000, 5):
            least, largest = [], []
            for x in (low_x[i], high_x[i]):
                for y in (low_y[i], high_y[i]):
                    value = exact(x) * exact(y)
                    lower, upper = (
                        exact(a[i]) * exact(x) + exact(b[i]) * exact(y) + exact(c[i])
                        for a, b, c in (found[:3], found[3:])
                    )
                    least.append(value - lower)
                    largest.append(upper - value)
            # The product minus a plane is bilinear: its least values are at corners.
            assert min(least) >= 0 and min(largest) >= 0
            size = float(centre[:, i].abs().sum() + width[:, i].sum()) ** 2 + 1e-290
            assert min(least) <= 1e-14 * size and min(largest) <= 1e-14 * size


def test_planes_of_mccormick() -> None:
    ends = (torch.tensor([part]).double() for part in (-1.0, 2.0, 3.0, 5.0))
    found = lines.product(*ends, 1.0, 1.0)
    assert [float(part) for part in found] == pytest.approx([3, -1, 3, 3, 2, -6])


def test_planes_of_infinite_boxes_are_infinite_and_nan_stays() -> None:
    low, high = torch.tensor([-torch.inf, torch.nan]).double(), torch.tensor([1.0, 1.0]).double()
    found = lines.product(low, high, torch.zeros(2).double(), torch.ones(2).double())
    assert found.lower_offset[0] == -torch.inf and found.upper_offset[0] == torch.inf
    assert found.lower_offset[1].isnan() and found.upper_offset[1].isnan()


def test_mixing_weights_have_derivatives() -> None:
    box = [torch.tensor([part]).double() for part in (-1.0, 2.0, -3.0, 5.0)]
    weight = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    found = lines.product(*box, weight, weight)
    at = found.lower_x * 0.4 + found.lower_y * 1.2 + found.lower_offset
    (slope,) = torch.autograd.grad(at.sum(), weight)
    values = []
    for shift in (1e-6, -1e-6):
        moved = lines.product(*box, weight.detach() + shift, weight.detach())
        values.append(moved.lower_x * 0.4 + moved.lower_y * 1.2 + moved.lower_offset)
    assert float(slope) == pytest.approx(float((values[0] - values[1]) / 2e-6), rel=1e-5)
