"""Radius searches, on margins that nobody would hope for: whatever they do, a claim was itself bounded."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from certbench.core.search import SEARCHES, Bisection, Bound, Evaluation, Found, Ladder, RadiusSearch, Secant, Start
from certbench.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the .random. module")  # jaxtyping does, by the by

Margin = Callable[[float], float]

AWKWARD = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e308, -1e308, 1e-320]


def wild(values: list[float]) -> Margin:
    """A margin that jumps between the values from one eps to the next, the same at the same eps."""
    return lambda eps: values[hash(eps) % len(values)]


def step(root: float) -> Margin:
    return lambda eps: 1.0 if eps < root else -1.0


def cliff(root: float) -> Margin:
    return lambda eps: root - eps if eps < root else math.nan


MONOTONE: dict[str, Callable[[float], Margin]] = {
    "linear": lambda root: lambda eps: root - eps,
    "concave": lambda root: lambda eps: root**2 - eps**2,
    "convex": lambda root: lambda eps: 1 / (1 + eps) - 1 / (1 + root),
    "exponential": lambda root: lambda eps: math.exp(-eps) - math.exp(-root),
    "explosive": lambda root: lambda eps: 1 - math.exp(min(eps, 700)) / math.exp(root),
    "step": step,
    "cliff": cliff,
}

numbers = st.one_of(st.floats(-10, 10), st.sampled_from(AWKWARD))
roots = st.floats(-4, 1.6).map(lambda exponent: 10**exponent)
margins = st.one_of(
    st.lists(numbers, min_size=1, max_size=7).map(wild),
    st.builds(lambda make, root: make(root), st.sampled_from(list(MONOTONE.values())), roots),
)
relatives, limits, counts = st.floats(1e-6, 0.9), st.floats(10, 1e5), st.integers(1, 60)
closing = st.one_of(
    st.builds(Bisection, st.floats(1e-3, 10), relatives, limits, counts), st.builds(Secant, relatives, limits, counts)
)
ladders = st.lists(st.floats(1e-3, 10), min_size=1, max_size=5).map(lambda eps: Ladder(tuple(eps)))


def run(
    search: RadiusSearch,
    functions: Sequence[Margin],
    clean: Tensor,
    crossings: Sequence[Margin] | None = None,
    guess: float = math.nan,
    tangent: float = math.nan,
    size: float | None = None,
    farthest: float | None = None,
) -> tuple[Found, list[list[tuple[float, float]]]]:
    """What the search found, and of each input what it saw: (eps, margin), in order."""
    seen: list[list[tuple[float, float]]] = [[] for _ in functions]

    def bound(index: Tensor, eps: Tensor) -> Evaluation:
        for i, radius in zip(index.tolist(), eps.tolist(), strict=True):
            seen[i].append((radius, functions[i](radius)))
        margin = torch.tensor([seen[i][-1][1] for i in index.tolist()], dtype=torch.float64)
        if crossings is None:
            return Evaluation(margin, torch.full_like(margin, torch.nan))
        reached = [crossings[i](radius) for i, radius in zip(index.tolist(), eps.tolist(), strict=True)]
        return Evaluation(margin, torch.tensor(reached, dtype=torch.float64))

    checked: Bound = bound
    ends = (None if value is None else torch.full_like(clean, value) for value in (size, farthest))
    known = Start(torch.full_like(clean, guess), torch.full_like(clean, tangent), *ends)
    return search.run(checked, clean, known), seen


def ones(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.float64)


@settings(deadline=None, max_examples=120)
@given(st.one_of(closing, ladders), st.lists(st.tuples(margins, numbers), min_size=1, max_size=4))
def test_every_claim_was_itself_bounded(search: RadiusSearch, batch: list[tuple[Margin, float]]) -> None:
    clean = torch.tensor([value for _, value in batch], dtype=torch.float64)
    found, seen = run(search, [margin for margin, _ in batch], clean)
    for i, visits in enumerate(seen):
        held = [eps for eps, margin in visits if margin > 0]
        fell = [eps for eps, margin in visits if not margin > 0]
        assert found.certified[i] == max(held, default=0.0)
        assert found.refuted[i] == min(fell, default=math.inf)
        assert found.certified[i] < found.refuted[i]
        assert found.evaluations[i] == len(visits)
        assert bool(visits) == bool(clean[i] > 0)  # the misclassified and the unsure are never bounded


@settings(deadline=None, max_examples=120)
@given(closing, st.lists(st.tuples(margins, margins), min_size=1, max_size=4), numbers, numbers)
def test_no_claim_exceeds_what_some_evaluation_proved(
    search: RadiusSearch, batch: list[tuple[Margin, Margin]], guess: float, tangent: float
) -> None:
    """An evaluation at eps proves eps where the margin is positive, else the crossing, and nothing beyond eps."""
    crossings = [crossing for _, crossing in batch]
    found, seen = run(search, [margin for margin, _ in batch], ones(len(batch)), crossings, guess, tangent)
    for i, visits in enumerate(seen):
        proved = [eps if margin > 0 else min(eps, crossings[i](eps)) for eps, margin in visits]
        assert found.certified[i] <= max((radius for radius in proved if radius > 0), default=0.0)
        assert found.certified[i] >= max((eps for eps, margin in visits if margin > 0), default=0.0)
        assert found.certified[i] < found.refuted[i]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_crossings_lead_to_their_fixed_point_in_a_few_evaluations(scale: float) -> None:
    """A crossing that falls with eps, as linear bounds' do, has one fixed point."""
    shapes: list[Margin] = [
        lambda eps: scale * (1 - 0.5 * (eps / scale) ** 2),
        lambda eps: scale * math.exp(-2 * eps / scale),
        lambda eps: scale / (1 + eps / scale),
        lambda eps: min(scale, 1.6 * scale - eps),
    ]
    for shape in shapes:
        low, high = 0.0, 4 * scale
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if shape(middle) > middle else (low, middle)

        def margin(eps: float, reach: Margin = shape) -> float:
            return 1 - eps / reach(eps) if reach(eps) > 0 else -1 - eps / scale

        found, seen = run(Secant(), [margin], ones(1), [shape], tangent=scale)
        assert found.certified.item() == pytest.approx(low, rel=1e-3)
        assert found.certified.item() <= low * (1 + 1e-9)
        assert len(seen[0]) <= 6


@settings(deadline=None, max_examples=80)
@given(closing, st.lists(margins, min_size=1, max_size=3))
def test_a_search_stays_in_its_bracket_and_within_its_means(search: Bisection, batch: list[Margin]) -> None:
    _, seen = run(search, batch, ones(len(batch)))
    for visits in seen:
        assert len(visits) <= search.evaluations
        low, high = 0.0, math.inf
        for eps, margin in visits:
            assert low < eps < high and eps <= search.limit
            low, high = (eps, high) if margin > 0 else (low, eps)


@settings(deadline=None, max_examples=40)
@given(st.one_of(closing, ladders), st.lists(margins, min_size=2, max_size=4))
def test_an_input_is_searched_as_if_it_were_alone(search: RadiusSearch, batch: list[Margin]) -> None:
    _, together = run(search, batch, ones(len(batch)))
    alone = [run(search, [margin], ones(1))[1][0] for margin in batch]
    assert str(together) == str(alone)  # as text, because of NaN


@pytest.mark.parametrize("shape", MONOTONE)
@settings(deadline=None, max_examples=20)
@given(roots, st.floats(-8, -0.1).map(lambda exponent: 10**exponent), st.floats(1e-3, 10))
def test_both_searches_meet_the_crossing_of_a_falling_margin(
    shape: str, root: float, relative: float, start: float
) -> None:
    for search in (Bisection(start, relative), Secant(relative)):
        found, _ = run(search, [MONOTONE[shape](root)], ones(1), guess=start)
        assert (1 - relative) * root * (1 - 1e-9) <= found.certified.item() <= root * (1 + 1e-9)
        assert found.refuted.item() - found.certified.item() <= relative * found.refuted.item()


@pytest.mark.parametrize("shape", ["linear", "concave", "convex", "exponential"])
def test_a_secant_is_cheaper_where_the_margin_is_smooth(shape: str) -> None:
    functions = [MONOTONE[shape](10**exponent) for exponent in (-3, -2.5, -1.2, -0.7, 0.1, 0.9)]
    clean = torch.tensor([margin(0.0) for margin in functions], dtype=torch.float64)
    secant, _ = run(Secant(relative=1e-4), functions, clean)
    bisection, _ = run(Bisection(relative=1e-4), functions, clean)
    assert secant.evaluations.sum() < 0.8 * bisection.evaluations.sum()


@pytest.mark.parametrize("kind", [Bisection, Secant])
@pytest.mark.parametrize("limit", [0.1, 3.0, 1e4, 1e300])
def test_a_margin_that_never_falls_is_certified_at_the_limit(kind: type[Bisection | Secant], limit: float) -> None:
    found, _ = run(kind(limit=limit, evaluations=600), [lambda eps: 1.0], ones(1))
    assert (found.certified.item(), found.refuted.item()) == (limit, math.inf)


@pytest.mark.parametrize("kind", [Bisection, Secant])
@pytest.mark.parametrize("shape", [*MONOTONE, "constant"])
def test_a_search_in_other_units_tries_the_same_radii_in_those_units(
    kind: type[Bisection | Secant], shape: str
) -> None:
    unit = 2.0**20
    margin = MONOTONE[shape](3.0) if shape != "constant" else lambda eps: 1.0
    (small, seen), (large, other) = (
        run(kind(), [lambda eps, u=u: margin(eps / u)], ones(1), size=u) for u in (1.0, unit)
    )
    assert large.limit.item() == 1e4 * unit
    assert large.evaluations.tolist() == small.evaluations.tolist()
    assert large.certified.item() == pytest.approx(small.certified.item() * unit, rel=1e-12)
    assert [eps for eps, _ in other[0]] == pytest.approx([eps * unit for eps, _ in seen[0]], rel=1e-12)


@pytest.mark.parametrize("kind", [Bisection, Secant])
def test_a_search_ends_beyond_the_domain(kind: type[Bisection | Secant]) -> None:
    short, _ = run(kind(), [lambda eps: 1.0], ones(1), farthest=0.7)
    long, _ = run(kind(), [lambda eps: 1.0], ones(1))
    assert 0.7 <= short.certified.item() < long.certified.item() == 1e4
    assert short.evaluations < long.evaluations
    same, _ = run(kind(), [step(0.6)], ones(1), farthest=0.7)
    assert same.certified.item() == run(kind(), [step(0.6)], ones(1))[0].certified.item()


@pytest.mark.parametrize("kind", [Bisection, Secant])
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_radii_whose_product_is_no_float_are_found_too(kind: type[Bisection | Secant], scale: float) -> None:
    search = Secant(limit=1e300) if kind is Secant else Bisection(start=scale, limit=1e300)
    found, _ = run(search, [step(3.3 * scale)], ones(1), guess=scale)
    assert found.certified.item() == pytest.approx(3.3 * scale, rel=1e-3)


@pytest.mark.parametrize("kind", [Bisection, Secant])
def test_a_margin_that_always_fails_gives_zero(kind: type[Bisection | Secant]) -> None:
    found, _ = run(kind(), [lambda eps: -1.0, lambda eps: math.nan], ones(2))
    assert found.certified.tolist() == [0.0, 0.0]


@settings(deadline=None)
@given(ladders, margins)
def test_a_ladder_climbs_until_the_first_rung_that_fails(ladder: Ladder, margin: Margin) -> None:
    found, seen = run(ladder, [margin], ones(1))
    first = next((i for i, eps in enumerate(ladder.eps) if not margin(eps) > 0), len(ladder.eps))
    assert [eps for eps, _ in seen[0]] == list(ladder.eps[: first + 1])
    assert found.certified.item() == (ladder.eps[first - 1] if first else 0.0)


@pytest.mark.parametrize("search", [Secant(), Bisection(), Ladder((0.1,))], ids=list(SEARCHES))
def test_an_empty_batch_is_fine(search: RadiusSearch) -> None:
    assert len(run(search, [], ones(0))[0].certified) == 0


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda: Bisection(start=0), ("start",)),
        (lambda: Bisection(start=math.nan), ("start",)),
        (lambda: Secant(limit=0.0), ("limit",)),
        (lambda: Bisection(start=math.inf, limit=math.inf), ("start",)),
        (lambda: Bisection(limit=math.inf), ("limit",)),
        (lambda: Bisection(start=1.0, limit=0.5), ("limit",)),
        (lambda: Secant(relative=0.0), ("relative",)),
        (lambda: Secant(relative=1.0), ("relative",)),
        (lambda: Bisection(evaluations=0), ("evaluations",)),
        (lambda: Ladder(()), ("eps",)),
        (lambda: Ladder((0.1, -0.1)), ("eps", 1)),
        (lambda: Ladder((math.nan,)), ("eps", 0)),
        (lambda: Ladder((math.inf,)), ("eps", 0)),
    ],
)
def test_settings_with_which_no_search_could_end_are_refused(
    make: Callable[[], object], path: tuple[object, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.path == path
