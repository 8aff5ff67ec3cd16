import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

import certbench
from certbench import L1
from certbench.verifiers.smoothing.splitting import DeterministicSplitting, Splitting, SplittingSmoothing, ranking
from tests.support.grids import grid, half, stream, table


class Even(np.random.Generator):
    """A stream whose draws are the middles of equal parts of [0, 1)."""

    def random(self, size: tuple[int, int]) -> np.ndarray:  # type: ignore[override, type-arg]
        return np.repeat(((np.arange(size[0]) + 0.5) / size[0])[:, None], size[1], axis=1)


EVEN = Even(np.random.SFC64(0))


@pytest.mark.parametrize("lam", [0.05, 0.2, 0.35, 0.5, 0.8, 2.0])
def test_a_change_is_seen_with_probability_delta_over_two_lambda(lam: float) -> None:
    n, noise = 100_000, Splitting(lam)
    for a, b in [(0.0, 0.04), (0.3, 0.35), (0.91, 1.0), (0.2, 0.45), (0.6, 0.6)]:
        one, other = (noise.perturb(torch.tensor([v], dtype=torch.float64), EVEN, n) for v in (a, b))
        share = float((one != other).double().mean())
        assert share == pytest.approx(min(1, (b - a) / (2 * lam)), abs=3 / n)


@pytest.mark.parametrize("lam", [0.05, 0.2, 0.5, 0.8])
def test_the_classifier_sees_the_middle_of_a_piece_around_the_input(lam: float) -> None:
    x = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = Splitting(lam).perturb(x, stream(), 400)
    assert ((seen >= 0) & (seen <= 1)).all()
    assert ((seen - x).abs() <= min(lam, 0.5) + 1e-12).all()


def test_splitting_certifies_the_distance_to_the_boundary_as_draws_grow() -> None:
    x = torch.tensor([[0.1], [0.4], [0.6], [0.75], [1.0]], dtype=torch.float64)
    certificate = certbench.certify(SplittingSmoothing(lam=0.5, n=100_000), half(), x, L1)
    distance = (x - 0.5).abs().squeeze(1)
    assert (certificate.radius <= distance).all()
    torch.testing.assert_close(certificate.radius, distance, atol=0.012, rtol=0)
    assert certificate.prediction.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.machine
@pytest.mark.parametrize("rule", ["two-class", "one-vs-rest"])
def test_sampled_splitting_radii_exceed_the_true_ones_no_more_often_than_alpha(rule: str) -> None:
    certifier = SplittingSmoothing(lam=0.5, n=100, n0=10, alpha=0.1, rule=rule)  # type: ignore[arg-type]
    state = certifier.prepare(half(), L1)
    x = torch.full((150, 1), 0.7, dtype=torch.float64)
    certificate = certifier.certify(state, x, range(150))
    wrong = int((certificate.radius > 0.2).sum()) + int((certificate.prediction == 0).sum())
    assert 1 <= wrong <= 30  # Binomial(150, 0.1) is above 30 with probability 1e-4


def test_the_splitting_radius_is_never_above_the_formula() -> None:
    certifier = SplittingSmoothing(lam=0.7)
    for low, high in [(0.9, 0.05), (0.51, 0.49), (1.0, 0.0), (0.4, 0.4), (0.3, 0.6)]:
        radius = certifier.radius(low, high, 3072)
        exact = Fraction(0.7) * (Fraction(low) - Fraction(high))
        assert Fraction(radius) <= max(exact, 0)
        assert radius == pytest.approx(max(float(exact), 0), abs=1e-10)


@pytest.mark.parametrize("lam", [0.13, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(4))
def test_no_point_of_the_grid_within_a_deterministic_radius_has_another_class(lam: float, seed: int) -> None:
    steps = 5
    certifier, classifier, x = DeterministicSplitting(lam=lam, grid=steps), table(2, 3, seed, 0.4), grid(2, steps)
    certificate = certbench.certify(certifier, classifier, x, L1)
    distance = (x[:, None] - x).abs().sum(dim=2)
    inside = distance <= certificate.radius[:, None] + 1e-9
    assert (certificate.prediction[:, None] == certificate.prediction)[inside].all()
    assert {evidence["n"] for evidence in certificate.evidence} == {certifier.levels}


@pytest.mark.parametrize("steps", [8, 9])
def test_the_deterministic_radius_is_exact_where_one_step_is_one_vote(steps: int) -> None:
    x = grid(1, steps)
    certificate = certbench.certify(DeterministicSplitting(lam=0.5, grid=steps), half(), x, L1)
    values = (x.squeeze(1) * steps).round().long()
    assert certificate.prediction.tolist() == [int(2 * v > steps) for v in values.tolist()]  # a tie is the first class
    others = certificate.prediction[:, None] != certificate.prediction
    closest = (values[:, None] - values).abs().masked_fill(~others, 99).amin(dim=1)
    assert (certificate.radius * steps).round().long().tolist() == (closest - 1).tolist()


def test_for_all_points_the_deterministic_radius_nears_the_distance_of_the_border() -> None:
    steps = 9  # the class changes at the cut 4.5/9; the radius also allows for a nearer first cut on the other side
    certifier = DeterministicSplitting(lam=0.5, grid=steps, points="all")
    x = torch.rand(40, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    certificate = certbench.certify(certifier, half(), x, L1)
    distance = (x.squeeze(1) - 0.5).abs()
    assert (certificate.radius <= distance).all()
    off = (x.squeeze(1) * steps - (x.squeeze(1) * steps).round()).abs()
    assert (certificate.radius >= distance - 2 * off / steps - 1e-8).all()


@pytest.mark.parametrize("seed", range(3))
def test_no_point_at_all_within_a_deterministic_radius_has_another_class(seed: int) -> None:
    certifier = DeterministicSplitting(lam=0.4, grid=5, points="all")
    classifier, generator = table(2, 3, seed, 0.5), torch.Generator().manual_seed(seed)
    x = torch.rand(25, 2, generator=generator, dtype=torch.float64)
    certificate = certbench.certify(certifier, classifier, x, L1)
    assert (certificate.radius > 0.1).any()
    for _ in range(15):
        step = torch.randn(25, 2, generator=generator, dtype=torch.float64)
        step /= step.abs().sum(dim=1, keepdim=True)
        inside = (x + step * certificate.radius[:, None] * (1 - 1e-9)).clamp(0, 1)
        assert torch.equal(certbench.certify(certifier, classifier, inside, L1).prediction, certificate.prediction)


@pytest.mark.parametrize("changes", range(7))
def test_for_all_points_the_radius_is_the_least_cost_of_one_change_more(changes: int) -> None:
    steps = torch.tensor([3.0, 4.3, 7.9], dtype=torch.float64)
    ways = [
        [min(abs(v - (c + 0.5)) for c in [math.floor(v + 0.5) - k, math.floor(v + 0.5) + k - 1]) if k else 0.0
         for k in range(9)] for v in steps.tolist()
    ]  # fmt: skip
    costs = [
        sum(ways[i][k] for i, k in enumerate(ks)) for ks in itertools.product(range(9), repeat=3) if sum(ks) > changes
    ]
    radius = DeterministicSplitting(grid=10, points="all").radius(changes, steps)
    assert radius <= min(costs) / 10
    assert radius == pytest.approx(min(costs) / 10, abs=1e-8)


@pytest.mark.parametrize("lam", [0.2, 0.5, 0.9])
def test_deterministic_pieces_are_those_of_the_random_form_at_the_same_cuts(lam: float) -> None:
    certifier = DeterministicSplitting(lam=lam, grid=10)
    values = torch.arange(11)
    pieces = certifier.pieces(values, torch.arange(certifier.levels))
    cuts = (stream().integers(0, certifier.levels, 11) + np.arange(certifier.levels)[:, None]) % certifier.levels + 0.5

    class Cuts(np.random.Generator):
        def random(self, size: tuple[int, int]) -> np.ndarray:  # type: ignore[override, type-arg]
            return cuts / certifier.levels

    width = certifier.levels / 10
    seen = Splitting(width / 2).perturb(values.double() / 10, Cuts(np.random.SFC64(0)), certifier.levels)
    torch.testing.assert_close(pieces, seen, atol=1e-12, rtol=0)


def test_the_published_numbers_of_passes() -> None:
    assert [DeterministicSplitting(lam=s * math.sqrt(3)).levels for s in (0.5, 3.5)] == [441, 3091]


@pytest.mark.parametrize("votes", list(itertools.product(range(4), repeat=3)))
def test_the_ranking_is_the_largest_number_of_changes_that_keeps_the_winner(votes: tuple[int, int, int]) -> None:
    top, room = ranking(votes, 1)
    assert top == max(range(3), key=lambda c: votes[c])
    for m in range(room + 2):
        worst = [[votes[c] - m * (c == top) + m * (c == rival) for c in range(3)] for rival in range(3) if rival != top]
        kept = all(max(range(3), key=lambda c: after[c]) == top for after in worst)
        assert kept == (m <= room)
