import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from certbench.errors import ConfigError, UnsupportedError
from certbench.verifiers.smoothing.noise import differential_method as heights
from certbench.verifiers.smoothing.noise.families import (
    NOISES,
    ExpInf,
    ExpP,
    ExpTwo,
    Gaussian,
    Laplace,
    Noise,
    Pareto,
    PowInf,
    Uniform,
    UniformBall,
    uniform_l1_in_box,
)

EVERY = [
    *(noise(0.5) for noise in NOISES.values()),
    Pareto(0.5, a=6.0),
    ExpP(0.5, exponent=0.5),
    ExpP(0.5, exponent=4.0),
    ExpInf(0.5, k=2.0),
    ExpInf(0.5, k=0.5),
    ExpInf(0.5, k=1.5, j=1.0),
]
NORMS = (1.0, 2.0, math.inf)
DIMENSIONS = (1, 2, 3, 784, 3072, 150_528)
PAIRS = [(0.6, 0.4), (0.99, 0.01), (0.8, 0.1), (0.45, 0.3), (0.2, 0.05), (1 - 1e-9, 1e-9)]
every = pytest.mark.parametrize("noise", EVERY, ids=str)


def supports(noise: Noise, d: int) -> bool:
    return not (isinstance(noise, ExpInf) and noise.j > d - 2)


def least(before: np.ndarray, after: np.ndarray, p: float) -> float:
    """Neyman and Pearson: what a set of probability p keeps at least, given both densities over the same cells."""
    with np.errstate(divide="ignore", invalid="ignore"):
        order = np.argsort(np.where(before > 0, after / before, np.inf), axis=None)
    before, after = before.ravel()[order], after.ravel()[order]
    return float(
        np.interp(
            p,
            np.concatenate([[0], np.cumsum(before)]) / before.sum(),
            np.concatenate([[0], np.cumsum(after)]) / before.sum(),
        )
    )


def spare(density: Any, shift: np.ndarray, cells: list[np.ndarray], p_lower: float, p_upper: float) -> float:
    """How far the class stays ahead at worst after the shift."""
    before = density(*cells)
    after = density(*(axis - step for axis, step in zip(cells, shift, strict=True)))
    return least(before, after, p_lower) - (1 - least(before, after, 1 - p_upper))


def laws(noise: Noise) -> Any:
    """The distribution of one coordinate in one dimension."""
    s = noise.scale(1)
    match noise:
        case Gaussian():
            return stats.norm(scale=s)
        case Laplace() | ExpTwo():
            return stats.laplace(scale=s)
        case Uniform() | UniformBall():
            return stats.uniform(-s, 2 * s)
        case ExpP(exponent=q):
            return stats.gennorm(q, scale=s)
        case ExpInf(k=k):
            return stats.gennorm(k, scale=s)
        case Pareto(a=a) | PowInf(a=a):
            return stats.lomax(a, scale=s)  # of the absolute value


def density(noise: Noise, x: np.ndarray) -> np.ndarray:
    law = laws(noise)
    return law.pdf(abs(x)) / 2 if isinstance(noise, Pareto | PowInf) else law.pdf(x)


@every
@pytest.mark.parametrize(("p_lower", "p_upper"), PAIRS[:5])
def test_in_one_dimension_no_radius_exceeds_that_of_neyman_and_pearson(
    noise: Noise, p_lower: float, p_upper: float
) -> None:
    if not supports(noise, 1):
        return
    radius = noise.radius(p_lower, p_upper, 2.0, 1)
    law = laws(noise)
    far = 1.2 * noise.scale(1) if isinstance(noise, Uniform | UniformBall) else law.isf(1e-9)
    far = min(far, 4000 * noise.sigma)
    steps = 20_001
    if isinstance(noise, Uniform | UniformBall):
        cell = radius / round(radius / (2 * far / steps))  # shift by whole cells
        inside = 2 * noise.scale(1) / cell
        cells = (np.arange(-steps, steps) + 0.5) * cell
        before = np.clip(inside / 2 - abs(cells / cell) + 0.5, 0, 1)  # share of the cell inside
        after = np.roll(before, round(radius / cell))
        gap = least(before, after, p_lower) - (1 - least(before, after, 1 - p_upper))
    else:  # equal steps of asinh follow heavy tails and resolve the middle
        top = math.asinh(far / noise.sigma * 50)
        edges = noise.sigma / 50 * np.sinh(np.linspace(-top, top, 2 * steps))
        edges = np.unique(np.concatenate([edges, edges + radius, [0.0, radius]]))
        mass = np.diff(cdf(noise, edges))
        moved = np.diff(cdf(noise, edges - radius))
        gap = least(mass, moved, p_lower) - (1 - least(mass, moved, 1 - p_upper))
    assert gap > -1e-6
    heavy = isinstance(noise, Pareto | PowInf) or getattr(noise, "exponent", getattr(noise, "k", 1)) < 1
    if not heavy:  # log-concave densities: half-lines are worst whatever the shift, and the radius is tight
        assert gap < 1e-6


def cdf(noise: Noise, x: np.ndarray) -> np.ndarray:
    law = laws(noise)
    return 0.5 + np.sign(x) * law.cdf(abs(x)) / 2 if isinstance(noise, Pareto | PowInf) else law.cdf(x)


@pytest.mark.parametrize("d", [2, 3, 10, 784])
@pytest.mark.parametrize(("p_lower", "p_upper"), PAIRS[:5])
def test_uniform_ball_by_the_overlap_of_two_balls(d: int, p_lower: float, p_upper: float) -> None:
    radius = UniformBall(0.5).radius(p_lower, p_upper, 2.0, d) / UniformBall(0.5).scale(d)

    def slab(low: float, high: float) -> float:
        return integrate.quad(lambda x: (1 - x * x) ** ((d - 1) / 2), low, high, epsabs=0, epsrel=1e-11, limit=200)[0]

    beyond = slab(0, radius / 2) / (slab(0, 6 / math.sqrt(d)) + slab(6 / math.sqrt(d), 1) if d > 40 else slab(0, 1))
    assert beyond == pytest.approx((p_lower - p_upper) / 2, rel=1e-8)


@pytest.mark.parametrize("d", [2, 3, 10, 784])
@pytest.mark.parametrize("noise", [ExpInf(0.5), ExpInf(0.5, k=0.5), ExpInf(0.5, k=3.0), PowInf(0.5, a=3.5)], ids=str)
def test_l1_of_cubic_noises_is_the_gap_over_the_rate_of_total_variation(noise: Noise, d: int) -> None:
    s = noise.scale(d)
    points = np.linspace(-60, 60, 100_000)  # logarithms of r / scale
    r = np.exp(points)
    log = -(d + 3.5) * np.log1p(r) if isinstance(noise, PowInf) else -np.minimum(r ** getattr(noise, "k", 1), 1e6)
    volume, face = (np.exp(m * points + log - (d * points + log).max()).sum() for m in (d, d - 1))
    rate = (d - 1) / (2 * d * s) * face / volume
    assert noise.direct(0.8, 0.1, d)[1.0] == pytest.approx(0.35 / rate, rel=1e-8)


@pytest.mark.parametrize("p", [0.51, 0.6, 0.99, 1 - 1e-9])
def test_families_agree_where_they_meet(p: float) -> None:
    def radius(noise: Noise, norm: float, d: int, rival: float = 1 - p) -> float:
        return noise.radius(p, rival, norm, d)

    for rival in (1 - p, (1 - p) / 10):
        assert radius(ExpP(1, 1.0), 1, 7, rival) == pytest.approx(radius(Laplace(1), 1, 7, rival), rel=1e-9)
        assert radius(ExpP(1, 2.0), 1, 7, rival) == pytest.approx(radius(Gaussian(1), 1, 7, rival), rel=1e-9)
        assert radius(ExpInf(1, 2.0), 1, 1, rival) == pytest.approx(radius(Gaussian(1), 2, 1, rival), rel=1e-6)
        assert radius(ExpInf(1, 100.0), 1, 3, rival) == pytest.approx(radius(Uniform(1), 1, 3, rival), rel=0.05)
        assert radius(PowInf(1, 4.0), 1, 1, rival) == pytest.approx(radius(Pareto(1, 4.0), 1, 1, rival), rel=1e-6)
        assert radius(Pareto(1, 1000.0), 1, 1, rival) == pytest.approx(radius(Laplace(1), 1, 1, rival), rel=0.02)
        assert radius(UniformBall(1), 1, 1, rival) == pytest.approx(radius(Uniform(1), 1, 1, rival), rel=1e-9)
    assert ExpTwo(1).radius(p, 1 - p, 2, 10**6) == pytest.approx(Gaussian(1).radius(p, 1 - p, 2, 1), rel=1e-4)


GRID = (np.arange(-220, 220) + 0.5) / 49


@pytest.mark.parametrize(("p_lower", "p_upper"), [(0.99, 0.01), (0.6, 0.2)])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "noise", [Laplace(0.5), Uniform(1.0), UniformBall(1.0), ExpTwo(0.5), ExpInf(0.5), ExpInf(0.5, k=2.0)], ids=str
)
def test_in_two_dimensions_no_radius_exceeds_that_of_neyman_and_pearson(
    noise: Noise, norm: float, p_lower: float, p_upper: float
) -> None:
    s = noise.scale(2)
    length = {
        Laplace: lambda x, y: np.exp(-(abs(x) + abs(y)) / s),
        Uniform: lambda x, y: 1.0 * (np.maximum(abs(x), abs(y)) <= s),
        UniformBall: lambda x, y: 1.0 * (x * x + y * y <= s * s),
        ExpTwo: lambda x, y: np.exp(-np.sqrt(x * x + y * y) / s),
        ExpInf: lambda x, y: np.exp(-((np.maximum(abs(x), abs(y)) / s) ** getattr(noise, "k", 1))),
    }[type(noise)]
    cells = list(np.meshgrid(GRID, GRID))
    radius = noise.radius(p_lower, p_upper, norm, 2)
    gaps = []
    for direction in ((1.0, 0.0), (1.0, 1.0), (1.0, 0.5)):
        shift = radius * np.array(direction) / np.linalg.norm(direction, norm)
        gaps.append(spare(length, shift, cells, p_lower, p_upper))
    assert min(gaps) > -0.01  # cells are a 49th wide
    if isinstance(noise, Uniform) or (isinstance(noise, UniformBall) and norm == 2):
        assert min(gaps) < 0.01


@every
def test_a_linear_classifier_is_never_passed(noise: Noise) -> None:
    """1[x_1 < b] has g(x) = F(b - x_1): no radius in any norm may exceed the quantile of a coordinate's law."""
    stream = np.random.Generator(np.random.SFC64(7))
    for d in (2, 5):
        if not supports(noise, d):
            continue
        coordinate = np.sort(noise.sample(stream, 200_000, d)[:, 0].astype(np.float64))
        for p in (0.55, 0.7, 0.9, 0.99):
            # the quantile's upper confidence limit at five standard deviations
            rank = 200_000 * p + 5 * math.sqrt(200_000 * p * (1 - p))
            for norm in NORMS:
                assert noise.radius(p, 1 - p, norm, d) <= coordinate[math.ceil(rank)]


@every
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("d", DIMENSIONS)
def test_radii_are_finite_and_monotone_up_to_extreme_probabilities(noise: Noise, norm: float, d: int) -> None:
    if not supports(noise, d):
        return
    slow = isinstance(noise, PowInf) or (isinstance(noise, ExpInf) and noise.k != 1)
    lowers = [0.5 + 1e-9, 0.6, 0.99, 1 - 1e-12] if slow else [0.5 + 1e-12, 0.5 + 1e-9, 0.6, 0.7, 0.99, 1 - 1e-12]
    binary = [noise.radius(p, 1 - p, norm, d) for p in lowers]
    assert binary == sorted(binary)
    assert all(0 < radius < math.inf for radius in binary)
    uppers = [1e-40, 1e-12, 0.01, 0.2, 0.39] if not slow else [1e-12, 0.2, 0.39]
    for p_lower in (0.4, 0.6):
        split = [noise.radius(p_lower, p_upper, norm, d) for p_upper in uppers]
        assert split == sorted(split, reverse=True)
        assert split[-1] > 0
    assert noise.radius(0.6, 0.2, norm, d) > binary[lowers.index(0.6)]


@every
def test_nothing_is_certified_without_evidence(noise: Noise) -> None:
    for p_lower, p_upper in [
        (0.5, 0.5),
        (0.3, 0.4),
        (0.0, 0.0),
        (math.nan, 0.1),
        (0.9, math.nan),
        (1.1, 0.1),
        (0.9, -1),
    ]:
        assert noise.radius(p_lower, p_upper, 2.0, 10) == 0
    bounded = isinstance(noise, Uniform | UniformBall) or (isinstance(noise, ExpInf) and noise.j > 0)
    assert math.isinf(noise.radius(1.0, 0.0, 2.0, 10)) != bounded
    with pytest.raises(UnsupportedError):
        noise.radius(0.9, 0.1, 0.0, 10)


def test_reference_values() -> None:
    one = Gaussian(1.0)
    for p, radius in [(0.6, 0.2533), (0.75, 0.6745), (0.9, 1.2816), (0.99, 2.3263), (0.999, 3.0902), (0.9999, 3.7190)]:
        assert one.radius(p, 1 - p, 2.0, 100) == pytest.approx(radius, abs=5.1e-5)
    b = Laplace(math.sqrt(2))
    assert b.radius(0.8, 0.1, 1.0, 50) == pytest.approx(1.263, abs=5e-4)
    assert b.radius(0.8, 0.1, 1.0, 50) == pytest.approx(-0.5 * math.log(4 * 0.1 * 0.2), rel=1e-10)
    for p_lower, p_upper in PAIRS[:4]:  # Teng, Lee and Yuan's bound is never larger
        assert b.radius(p_lower, p_upper, 1.0, 50) >= max(
            math.log(p_lower / p_upper) / 2 - 1e-9, -math.log(1 - p_lower + p_upper) - 1e-9
        )
    cap = 0.0005**1e-5
    assert Uniform(0.5).radius(cap, 1 - cap, math.inf, 3072) == pytest.approx(3.9e-4, abs=5e-6)
    assert Uniform(0.5).radius(0.8, 0.1, 1.0, 9) == pytest.approx(0.5 * math.sqrt(3) * 0.7, rel=1e-10)
    assert Uniform(0.5).radius(0.9, 0.1, math.inf, 9) == pytest.approx(math.sqrt(3) * (1 - 0.6 ** (1 / 9)), rel=1e-10)


@pytest.mark.parametrize("p", [0.5 + 2.0**-40, 0.51, 0.75, 0.99, 1 - 1e-6, 1 - 1e-12, 1 - 2.0**-53])
def test_radii_are_rounded_down_by_little(p: float) -> None:
    mp = pytest.importorskip("mpmath").mp
    with mp.workdps(40):
        t = 1 - mp.mpf(p)  # p is taken as the float that it is
        u = 1 - 2 * t

        def close(noise: Noise, norm: float, d: int, exact: Any) -> None:
            exact *= mp.mpf(noise.scale(d))
            radius = mp.mpf(noise.radius(p, 1 - p, norm, d))
            assert exact * (1 - mp.mpf("1e-10")) < radius <= exact

        close(Gaussian(0.5), 2.0, 9, mp.sqrt(2) * mp.erfinv(u))
        close(Laplace(0.5), 1.0, 9, -mp.log(2 * t))
        close(Uniform(0.5), 1.0, 784, u)
        close(Uniform(0.5), 2.0, 784, 2 * 28 * (1 - (1 - u / 2) ** (mp.mpf(1) / 784)))
        close(Uniform(0.5), math.inf, 150_528, 2 * (1 - (1 - u / 2) ** (mp.mpf(1) / 150_528)))
        close(UniformBall(0.5), 2.0, 1, u)
        close(ExpTwo(0.5), 2.0, 3, 2 * mp.atanh(u))
        close(ExpTwo(0.5), 2.0, 2, mp.atanh(mp.sin(mp.pi * u / 2)))
        close(ExpInf(0.5), math.inf, 784, -mp.log(2 * t))
        ratio = mp.gammaprod([mp.mpf(1505289)], [mp.mpf(1505280)])
        assert heights.gamma_ratio(1_505_280.0, 9.0) == pytest.approx(float(ratio), rel=1e-12)
        s = mp.mpf(4) / 3
        close(Pareto(0.5), 1.0, 5, u / 3 * mp.hyp2f1(1, 1 / s, 1 + 1 / s, u**s))
        tails, total, exact = mp.mpf(0), mp.mpf(0), mp.mpf(0)
        for value in range(99, 0, -2):  # independent signs, d = 99
            chance = mp.binomial(99, (99 + value) // 2) / mp.mpf(2) ** 99
            if tails + chance > t:
                start = max(t, tails)
                exact += mp.log((total + value * chance) / (total + value * (start - tails))) / value
            tails, total = tails + chance, total + value * chance
        close(Laplace(0.5), math.inf, 99, exact)


@every
@pytest.mark.parametrize("d", [1, 4, 50])
def test_samples_have_the_stated_scale_and_depend_on_the_stream_alone(noise: Noise, d: int) -> None:
    if not supports(noise, d):
        return
    first, again = (noise.sample(np.random.Generator(np.random.SFC64(d)), 20_000, d) for _ in range(2))
    assert first.dtype == np.float32
    assert first.shape == (20_000, d)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, noise.sample(np.random.Generator(np.random.SFC64(d + 1)), 20_000, d))
    draws = first.astype(np.float64)
    if not (isinstance(noise, Pareto | PowInf) and noise.a <= 4):  # their squares have no variance
        squares = (draws**2).mean(axis=1)
        assert abs(squares.mean() - noise.sigma**2) < 4.5 * squares.std() / math.sqrt(len(squares))
    assert (abs(draws.mean(axis=0)) < 5 * draws.std(axis=0) / math.sqrt(len(draws))).all()
    s = noise.scale(d)
    largest = abs(draws).max(axis=1) / s
    norm = np.sqrt((draws**2).sum(axis=1)) / s
    match noise:
        case Gaussian() | Laplace() | Uniform() | ExpP() | Pareto():
            samples, law = cdf(noise, draws[:, -1]), stats.uniform()
        case UniformBall():
            samples, law = norm**d, stats.uniform()
        case ExpTwo():
            samples, law = norm, stats.gamma(d)
        case ExpInf(k=k, j=j):
            samples, law = largest**k, stats.gamma((d - j) / k)
        case PowInf(a=a):
            samples, law = largest, stats.betaprime(d, a)
    assert stats.kstest(samples, law.cdf).pvalue > 1e-4
    if isinstance(noise, ExpInf | PowInf) and d > 1:  # the largest coordinate is any one, the others uniform below it
        assert stats.chisquare(np.bincount(abs(draws).argmax(axis=1), minlength=d)).pvalue > 1e-4
        others = (draws[:, 0] / s / largest)[abs(draws).argmax(axis=1) != 0]
        assert stats.kstest(others, stats.uniform(-1, 2).cdf).pvalue > 1e-4
    if isinstance(noise, UniformBall | ExpTwo) and d > 1:
        shares = (draws[:, 0] / s / norm + 1) / 2
        assert stats.kstest(shares, stats.beta((d - 1) / 2, (d - 1) / 2).cdf).pvalue > 1e-4


@pytest.mark.parametrize("half_side", [0.2, 0.6, 1.5, 10.0])
def test_the_radius_in_the_box_is_the_nearest_vertex_that_spends_the_gap(half_side: float) -> None:
    stream = np.random.Generator(np.random.SFC64(1))
    for p_lower, p_upper in PAIRS[:4]:
        x = stream.random(4)
        room, keep = np.maximum(x, 1 - x), 1 - (p_lower - p_upper) / 2
        best = math.inf
        for size in range(4):
            for full in itertools.combinations(range(4), size):
                product = math.prod(1 - room[i] / (2 * half_side) for i in full)
                for last in set(range(4)) - set(full):
                    part = 2 * half_side * (1 - keep / product) if product > 0 else math.inf
                    if 0 <= part <= room[last]:
                        best = min(best, sum(room[i] for i in full) + part)
        radius = uniform_l1_in_box(p_lower, p_upper, x, half_side)
        assert radius <= best
        assert radius == pytest.approx(best, rel=1e-9)
        assert radius >= half_side * (p_lower - p_upper) * (1 - 1e-9)


def test_the_radius_in_the_box_at_its_limits() -> None:
    corner, centre = np.zeros(3), np.full(3, 0.5)
    assert uniform_l1_in_box(0.9, 0.1, corner, 0.5) == pytest.approx(0.4)
    assert uniform_l1_in_box(0.9, 0.1, centre, 1.0) > 0.8
    assert uniform_l1_in_box(0.9, 0.1, centre, 3.0) == math.inf
    assert uniform_l1_in_box(0.5, 0.5, centre, 1.0) == 0
    assert uniform_l1_in_box(math.nan, 0.1, centre, 1.0) == 0
    with pytest.raises(ValueError, match="within"):
        uniform_l1_in_box(0.9, 0.1, np.array([1.5]), 1.0)
    with pytest.raises(ValueError, match="within"):
        uniform_l1_in_box(0.9, 0.1, np.array([math.nan]), 1.0)


@pytest.mark.parametrize(
    ("noise", "options"),
    [(noise, {"sigma": sigma}) for noise in NOISES.values() for sigma in (0.0, -1.0, math.inf, math.nan)]
    + [(Pareto, {"a": 2.0}), (Pareto, {"a": math.inf}), (PowInf, {"a": 1.0}), (ExpP, {"exponent": 0.0})]
    + [(ExpInf, {"k": 0.0}), (ExpInf, {"k": math.nan}), (ExpInf, {"j": -1.0}), (ExpInf, {"j": math.inf})],
)
def test_options_that_no_run_could_use_are_refused(noise: type[Noise], options: dict[str, float]) -> None:
    with pytest.raises(ConfigError) as caught:
        noise(**options)
    assert caught.value.path == tuple(options)


def test_too_few_dimensions_for_a_pole_are_refused() -> None:
    pole = ExpInf(0.5, k=1.0, j=3.0)
    assert pole.radius(0.9, 0.1, 1.0, 5) > 0
    stream = np.random.Generator(np.random.SFC64(0))
    for attempt in (lambda: pole.scale(4), lambda: pole.radius(0.9, 0.1, 1.0, 4), lambda: pole.sample(stream, 2, 4)):
        with pytest.raises(UnsupportedError):
            attempt()
