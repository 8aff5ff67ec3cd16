import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor, nn

import certbench
from certbench import ABSTAIN, L1, L2, Certifier, Classifier, ConfigError, Outcome, UnsupportedError
from certbench.core.evidence import SplittingEvidence
from certbench.core.threat import L0
from certbench.verifiers.smoothing import counting
from certbench.verifiers.smoothing.ablation import (
    Ablation,
    DiscreteSmoothing,
    RandomizedAblation,
    Replacement,
    TwoChannel,
)
from certbench.verifiers.smoothing.counting import ESTIMATION, SELECTION, Counter, Mechanism
from certbench.verifiers.smoothing.patches import PatchSmoothing, _touched
from certbench.verifiers.smoothing.splitting import DeterministicSplitting, Splitting, SplittingSmoothing, ranking
from certbench.verifiers.smoothing.votes import Vote, bounds
from tests.verifiers.smoothing.test_counting import Watched


class Table(nn.Module):
    """A random function of the input's exact values: the worst kind of base classifier, the same at every call."""

    def __init__(self, classes: int, seed: int, favour: float = 0.0) -> None:
        super().__init__()
        self.classes, self.seed, self.favour = classes, seed, favour

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.arange(1.0, x[0].numel() + 1, dtype=torch.float64) * (7.3 + self.seed)
        mixed = torch.sin((x.nan_to_num(nan=-1).double().flatten(1) * weights).sum(dim=1) + self.seed) * 1e4
        mixed = mixed[:, None] * torch.arange(1, self.classes + 1)
        logits = mixed - mixed.floor()
        logits[:, 0] += self.favour
        return logits


class Half(nn.Module):
    """Class 1 where the mean of the input is above one half: under cuts at lam = 1/2 its probability is x itself."""

    def forward(self, x: Tensor) -> Tensor:
        middle = x.double().flatten(1).mean(dim=1)
        return torch.stack([torch.full_like(middle, 0.5), middle], dim=1)


def table(d: int, classes: int, seed: int, favour: float = 0.0) -> Classifier:
    return Classifier(Table(classes, seed, favour).eval(), (d,), classes)


def half(d: int = 1) -> Classifier:
    return Classifier(Half().eval(), (d,), 2)


class Even(np.random.Generator):
    """A stream whose draws are the middles of equal parts of [0, 1)."""

    def random(self, size: tuple[int, int]) -> np.ndarray:  # type: ignore[override, type-arg]
        return np.repeat(((np.arange(size[0]) + 0.5) / size[0])[:, None], size[1], axis=1)


EVEN = Even(np.random.SFC64(0))


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(seed))


def grid(d: int, steps: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(steps + 1), repeat=d)), dtype=torch.float64) / steps


# Splitting


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


# L0: discrete noise


@pytest.mark.parametrize(
    ("keep", "steps", "expected"),
    [(0.8, 1, ["0.875", "0.96875", "0.9921875"]), (0.2, 255, ["0.69686", "0.85374", "0.97899"])],
)
def test_thresholds_are_the_published_ones(keep: float, steps: int, expected: list[str]) -> None:
    certifier = DiscreteSmoothing(keep=keep, grid=steps)
    for r, digits in enumerate(expected, start=1):
        threshold = certifier.threshold(r)
        places = 1e-12 if steps == 1 else 1e-5
        assert float(threshold) == pytest.approx(float(digits), abs=places)
        assert certifier.worst(threshold, r) == Fraction(1, 2)
        assert certifier.worst(threshold - Fraction(1, 10**15), r) < Fraction(1, 2)
        above = math.nextafter(float(threshold), 1) + 1e-12
        assert certifier.radius(above, 1 - above + 1e-16, 784) == r
        assert certifier.radius(above - 2e-12, 1 - above + 2e-12, 784) == r - 1


def outcomes(keep: Fraction, steps: int, x: tuple[int, ...]) -> dict[tuple[int, ...], Fraction]:
    """Probability of each outcome of discrete noise, by enumeration."""
    found = {}
    for z in itertools.product(range(steps + 1), repeat=len(x)):
        same = sum(a == b for a, b in zip(x, z, strict=True))
        found[z] = keep**same * ((1 - keep) / steps) ** (len(x) - same)
    return found


@pytest.mark.parametrize(("keep", "steps"), [(0.8, 1), (0.4, 2), (0.3, 3)])
@pytest.mark.parametrize("r", [1, 2, 3])
def test_the_worst_case_is_that_of_an_enumeration_whatever_the_dimension(keep: float, steps: int, r: int) -> None:
    certifier = DiscreteSmoothing(keep=keep, grid=steps)
    exact = Replacement(keep, steps).probability
    here = outcomes(exact, steps, (0,) * 3)
    there = outcomes(exact, steps, (1,) * r + (0,) * (3 - r))
    for p in (0.3, 0.5, 0.77, 0.95, 1.0):
        left, kept = Fraction(p), Fraction(0)
        for z in sorted(here, key=lambda z: here[z] / there[z], reverse=True):
            taken = min(left, here[z])
            left, kept = left - taken, kept + there[z] * taken / here[z]
        assert certifier.worst(p, r) == kept


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("d", "steps", "keep"), [(4, 1, 0.9), (3, 2, 0.8)])
def test_no_input_within_an_exact_l0_radius_has_another_class(seed: int, d: int, steps: int, keep: float) -> None:
    certifier, classifier = DiscreteSmoothing(keep=keep, grid=steps), table(d, 3, seed, 0.6)
    values = [tuple(v) for v in (grid(d, steps) * steps).round().long().tolist()]
    voted = dict(zip(values, classifier(grid(d, steps)).argmax(dim=1).tolist(), strict=True))
    smoothed = {}
    for x in values:
        shares = [Fraction(0)] * 3
        for z, share in outcomes(Replacement(keep, steps).probability, steps, x).items():
            shares[voted[z]] += share
        smoothed[x] = shares
    reached = 0
    for x, shares in smoothed.items():
        top = max(range(3), key=lambda c: shares[c])
        second = max(shares[c] for c in range(3) if c != top)
        radius = certifier.radius(math.nextafter(float(shares[top]), 0), min(1.0, math.nextafter(float(second), 1)), d)
        reached = max(reached, radius)
        for other, there in smoothed.items():
            if sum(a != b for a, b in zip(x, other, strict=True)) <= radius:
                assert all(there[top] > there[c] for c in range(3) if c != top) or radius == 0
    assert reached >= 1


@pytest.mark.machine
def test_discrete_noise_has_the_declared_distribution() -> None:
    n, noise = 40_000, Replacement(0.4, 4)
    drawn = (noise.perturb(torch.tensor([0.0, 0.49, 1.0]), stream(), n) * 4).round().long()
    for column, own in zip(drawn.T, (0, 2, 4), strict=True):  # 0.49 is rounded to the grid
        observed = torch.bincount(column, minlength=5).double()
        expected = torch.full((5,), 0.15 * n, dtype=torch.float64)
        expected[own] = 0.4 * n
        assert float(((observed - expected) ** 2 / expected).sum()) < chi2.isf(1e-4, 4)


def test_pixels_take_all_their_channels() -> None:
    module = nn.Sequential(nn.Flatten(), Half()).eval()
    image = Classifier(module, (3, 4, 4), 2)
    x = torch.ones(1, 3, 4, 4, dtype=torch.float64)
    one = DiscreteSmoothing(keep=0.6, grid=1, n=2000)
    single, pixels = (certbench.certify(c, image, x, L0) for c in (one, replace(one, pixels=True)))
    assert single.radius >= 3
    assert torch.equal(pixels.radius, single.radius // 3)
    assert pixels.evidence[0]["unit"] == "pixels"


# L0: ablation


@pytest.mark.parametrize(("d", "keep", "p", "expected"), [(784, 45, 0.99, 11), (784, 45, 0.8, 6), (1024, 75, 0.99, 8)])
def test_ablation_radii_are_those_of_the_binomials(d: int, keep: int, p: float, expected: int) -> None:
    certifier = RandomizedAblation(keep=keep)
    assert certifier.radius(p, 1 - p, d) == expected
    for gap in (0.0, 0.3, 0.9999):
        brute = max(
            r
            for r in range(d + 1)
            if r == 0
            or 2 * (1 - Fraction(math.comb(d - r, keep), math.comb(d, keep))) < Fraction(0.5 + gap / 2) - Fraction(0.1)
        )
        assert certifier.radius(0.5 + gap / 2, 0.1, d) == brute


def test_every_set_of_positions_is_equally_likely_and_channels_go_together() -> None:
    n = 30_000
    seen = Ablation(2, 2, math.nan).perturb(torch.rand(10), stream(), n)
    shown = ~seen.isnan().view(n, 2, 5)
    assert (shown[:, 0] == shown[:, 1]).all()
    code = (shown[:, 0] * 2 ** torch.arange(5)).sum(dim=1)
    observed = torch.bincount(code, minlength=32).double()
    assert int((observed > 0).sum()) == math.comb(5, 2)
    observed, expected = observed[observed > 0], n / math.comb(5, 2)
    assert float(((observed - expected) ** 2 / expected).sum()) < chi2.isf(1e-4, len(observed) - 1)


@pytest.mark.parametrize("seed", range(5))
def test_no_input_within_an_exact_ablation_radius_has_another_class(seed: int) -> None:
    d, keep = 6, 1
    classifier, x = table(d, 3, seed, 0.8), grid(6, 1)
    shares = torch.zeros(len(x), 3, dtype=torch.int64)
    sets = list(itertools.combinations(range(d), keep))
    for shown in sets:
        seen = torch.full_like(x, math.nan)
        seen[:, list(shown)] = x[:, list(shown)]
        shares += nn.functional.one_hot(classifier(seen).argmax(dim=1), 3)
    certifier, reached = RandomizedAblation(keep=keep), 0
    for i, row in enumerate(shares.tolist()):
        top = max(range(3), key=lambda c: row[c])
        second = max(row[c] for c in range(3) if c != top)
        radius = certifier.radius(
            math.nextafter(row[top] / len(sets), 0), min(1.0, math.nextafter(second / len(sets), 1)), d
        )
        reached = max(reached, radius)
        near = shares[(x != x[i]).sum(dim=1) <= radius]
        others = near.clone()
        others[:, top] = -1
        assert radius == 0 or (near[:, top] > others.amax(dim=1)).all()
    assert reached >= 1


def test_two_channels_tell_black_from_hidden() -> None:
    x = torch.tensor([[[[0.0, 1.0, math.nan]]]])
    assert TwoChannel()(x).tolist() == [[[[0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]]]


def sees(channels: int, zero: bool = False) -> Classifier:
    """Class 1 where the hidden-aware mean is high."""
    body: list[nn.Module] = [] if zero else [TwoChannel()]
    conv = nn.Conv2d(channels * (1 if zero else 2), 2, (4, 4))
    with torch.no_grad():
        conv.bias.zero_()  # type: ignore[union-attr]
        conv.weight.zero_()
        conv.weight[1, :channels] = 1.0
        if not zero:
            conv.weight[0, channels:] = 1.0
        else:
            conv.bias[0] = 0.5  # type: ignore[index]
    return Classifier(nn.Sequential(*body, conv, nn.Flatten()).eval(), (channels, 4, 4), 2)


@pytest.mark.parametrize("encode", ["two-channel", "zero"])
def test_ablation_certifies_through_the_front_door(encode: str) -> None:
    certifier = RandomizedAblation(keep=2, encode=encode, n=2000)  # type: ignore[arg-type]
    x = torch.cat([torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)]).double()
    certificate = certbench.certify(certifier, sees(3, encode == "zero"), x, L0)
    assert certificate.prediction.tolist() == [1, 0]
    assert certificate.radius.tolist() == [4, 4]  # 1 - C(12, 2) / C(16, 2) = 0.45, and of 5 changes 0.54


@pytest.mark.machine
@pytest.mark.parametrize("kind", ["discrete", "ablation"])
@pytest.mark.parametrize("rule", ["two-class", "one-vs-rest"])
def test_l0_radii_exceed_those_of_the_true_probabilities_no_more_often_than_alpha(kind: str, rule: str) -> None:
    if kind == "discrete":  # class 1 has the probability 0.8, the threshold of no change but the first is near
        certifier: Certifier = DiscreteSmoothing(keep=0.8, grid=1, n=100, n0=10, alpha=0.1, rule=rule)  # type: ignore[arg-type]
        classifier, x, true = half(1), torch.ones(1, 1), 0.8
    else:  # class 1 where the shown entry is white: 15 of 20
        certifier = RandomizedAblation(keep=1, n=100, n0=10, alpha=0.1, rule=rule)  # type: ignore[arg-type]
        x = (torch.arange(20) < 15).double()[None]
        classifier, true = Classifier(Shown().eval(), (20,), 2), 0.75
    exact = certifier.radius(true, 1 - true, x.numel())
    state = certifier.prepare(classifier, L0)
    certificate = certifier.certify(state, x.repeat(150, 1).double(), range(150))
    low = [evidence["p_lower"] > true or evidence["p_upper"] < 1 - true for evidence in certificate.evidence]
    assert 1 <= sum(low) <= 30
    assert int((certificate.radius > exact).sum()) <= sum(low)


class Shown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.full_like(x[:, 0], 0.5), x.flatten(1).sum(dim=1)], dim=1)


# Patches


def scored(channels: int, height: int, width: int, seed: int, favour: float) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        linear = nn.Linear(2 * channels * height * width, 3)
    with torch.no_grad():
        linear.weight.mul_(3)
        linear.bias[0] += favour
    return Classifier(nn.Sequential(TwoChannel(), nn.Flatten(), linear).eval(), (channels, height, width), 3)


@pytest.mark.parametrize(("kind", "size"), [("band", 1), ("band", 2), ("block", 1), ("block", 2)])
@pytest.mark.parametrize("rule", ["located", "uniform"])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_patch_of_the_certified_size_changes_the_class(kind: str, size: int, rule: str, seed: int) -> None:
    smoothing = PatchSmoothing(kind, size, 0.4, rule)  # type: ignore[arg-type]
    height, width = 4, 5
    classifier = scored(1, height, width, seed, 1.0)
    images = (torch.rand(6, 1, height, width, generator=torch.Generator().manual_seed(seed)) > 0.5).double()
    certificate = smoothing.certify(classifier, images)
    for image, label, radius in zip(images, certificate.prediction.tolist(), certificate.radius.tolist(), strict=True):
        side = min(int(radius), 2)
        contents = torch.tensor(list(itertools.product((0.0, 1.0), repeat=side * side))).double()
        for top, left in itertools.product(range(height - side + 1), range(width - side + 1)) if side else ():
            attacked = image.repeat(len(contents), 1, 1, 1)
            attacked[:, 0, top : top + side, left : left + side] = contents.view(-1, side, side)
            for one in attacked[:: 1 if side == 1 else 5]:
                votes = smoothing.votes(classifier, one).sum(dim=(0, 1)).tolist()
                assert max(range(3), key=lambda c: votes[c]) == label
    if kind == "block":
        assert (certificate.radius > 0).any()


@pytest.mark.parametrize("kind", ["band", "block"])
def test_the_located_certificate_is_that_of_every_patch_and_every_change_of_votes(kind: str) -> None:
    """Votes that see the patch become those that hurt most; the published rule certifies no more, often less."""
    height, width, size, gains = 5, 12 if kind == "band" else 6, 2, 0
    generator = torch.Generator().manual_seed(0)
    located, uniform = (PatchSmoothing(kind, size, rule=rule) for rule in ("located", "uniform"))  # type: ignore[arg-type]
    for _ in range(60):
        rows = 1 if kind == "band" else height
        chances = torch.tensor([0.9, 0.1, 0.05])
        votes = torch.rand(rows, width, 3, generator=generator) < chances
        top, side = located.side(votes, height, width)
        assert uniform.side(votes, height, width)[0] == top
        gains += side - uniform.side(votes, height, width)[1]
        for m in (side, side + 1):
            survived = all(
                survives(votes, top, kind, size, place, m)
                for place in itertools.product(range(height - m + 1), range(width - m + 1))
            )
            assert m == 0 or m > height or survived == (m == side)
    assert gains > 0


def survives(votes: Tensor, top: int, kind: str, size: int, place: tuple[int, int], m: int) -> bool:
    patch = set(itertools.product(range(place[0], place[0] + m), range(place[1], place[1] + m)))
    rows, width, classes = votes.shape
    height = 5
    for rival in range(classes):
        after = votes.clone()
        for r, c in itertools.product(range(rows), range(width)):
            down = range(height) if kind == "band" else [(r + i) % height for i in range(size)]
            if patch & set(itertools.product(down, [(c + i) % width for i in range(size)])):
                after[r, c] = torch.arange(classes) == rival
        total = after.sum(dim=(0, 1)).tolist()
        if rival != top and max(range(classes), key=lambda c: total[c]) != top:
            return False
    return True


@pytest.mark.parametrize("rule", ["located", "uniform"])
def test_a_unanimous_vote_certifies_what_the_published_formula_says(rule: str) -> None:
    votes = torch.zeros(1, 28, 10, dtype=torch.bool)
    votes[..., 3] = True
    smoothing = PatchSmoothing("band", 4, rule=rule)  # type: ignore[arg-type]
    assert smoothing.side(votes, 28, 28) == (3, 10)  # 28 > 2 (m + 3), or as many and the earlier class: 3 is not
    first = votes.roll(-3, dims=2)
    assert smoothing.side(first, 28, 28) == (0, 11)
    assert int(_touched(28, 5, 4).sum(dim=1).max()) == 8


def test_a_voteless_image_has_no_class() -> None:
    classifier = Classifier(nn.Sequential(nn.Flatten(), Shown()).eval(), (1, 3, 3), 2)
    quiet = PatchSmoothing("block", 1, threshold=1.0, encode="zero")
    certificate = quiet.certify(classifier, torch.rand(2, 1, 3, 3, dtype=torch.float64))
    assert certificate.prediction.tolist() == [ABSTAIN, ABSTAIN]
    assert set(certificate.outcome) == {Outcome.ABSTAINED}


# All of them

SAMPLED = [
    (SplittingSmoothing(n=1500), L1),
    (SplittingSmoothing(lam=0.2, n=1500), L1),
    (DiscreteSmoothing(keep=0.5, grid=16, n=1500), L0),
    (RandomizedAblation(keep=2, n=1500), L0),
]
EXACT = [
    (DeterministicSplitting(grid=16), L1),
    (DeterministicSplitting(grid=16, points="all"), L1),
    (DeterministicSplitting(lam=0.2, grid=16), L1),
]
ids = [f"{type(certifier).__name__}-{i}" for i, (certifier, _) in enumerate(SAMPLED + EXACT)]


@pytest.mark.machine
@pytest.mark.parametrize(("certifier", "threat"), SAMPLED + EXACT, ids=ids)
def test_neither_batch_nor_order_matter_and_the_evidence_can_be_stored(
    certifier: Certifier, threat: certbench.ThreatModel
) -> None:
    x = torch.randint(17, (5, 12), generator=torch.Generator().manual_seed(0)).double() / 16
    x[0] = 1.0
    module = Shown() if isinstance(certifier, RandomizedAblation) else Half()
    classifier = Classifier(module.eval(), (12,), 2)
    whole = certbench.certify(certifier, classifier, x, threat)
    order = torch.tensor([4, 2, 0, 1, 3])
    other = certbench.certify(certifier, classifier, x[order], threat, batch_size=2)
    assert torch.equal(other.radius, whole.radius[order])
    assert torch.equal(other.prediction, whole.prediction[order])
    assert json.loads(json.dumps(whole.evidence)) == list(whole.evidence)
    assert (whole.radius > 0).any()
    assert whole.prediction[0] == 1


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 3), math.nan)


@pytest.mark.parametrize(("certifier", "threat"), SAMPLED + EXACT, ids=ids)
def test_nan_votes_for_no_class(certifier: Certifier, threat: certbench.ThreatModel) -> None:
    certificate = certbench.certify(certifier, Classifier(Broken().eval(), (4,), 3), torch.ones(2, 4), threat)
    assert (certificate.prediction == ABSTAIN).all()
    assert (certificate.radius == 0).all()
    assert set(certificate.outcome) == {Outcome.ABSTAINED}


@pytest.mark.parametrize("rule", ["two-class", "one-vs-rest"])
def test_bounds_cross_at_ties_and_where_most_draws_had_no_vote(rule: str) -> None:
    for votes in ([500, 500, 0], [400, 0, 0], [100, 900, 0]):
        low, high = bounds(0, votes, 1000, 0.001, rule)  # type: ignore[arg-type]
        assert low <= high


def test_the_evidence_says_how_it_came_about() -> None:
    vote = Vote([3, 2], [7, 3], 0, 0.2, 0.8, 10, 0.1, "two-class", 5)
    assert vote.evidence(SplittingEvidence, lam=0.5).seed == f"{5:032x}"


@pytest.mark.parametrize("mechanism", [Splitting(0.5), Splitting(0.1), Replacement(0.5, 16), Ablation(2, 1, 0.0)])
def test_more_draws_extend_fewer(mechanism: Mechanism) -> None:
    counter, x = Counter(half(4), mechanism, None, None), torch.full((1, 4), 0.5, dtype=torch.float64)
    few, many = (counter.count(x, n, [3], ESTIMATION) for n in (1500, 2500))
    assert (int(few.sum()), int(many.sum())) == (1500, 2500)
    assert (few <= many).all()
    assert not torch.equal(counter.count(x, 1500, [3], SELECTION), few) or few.max() == 1500


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: SplittingSmoothing(lam=0), "lam"),
        (lambda: SplittingSmoothing(alpha=1), "alpha"),
        (lambda: SplittingSmoothing(n=0), "n"),
        (lambda: DeterministicSplitting(lam=0.001), "lam"),
        (lambda: DeterministicSplitting(grid=0), "grid"),
        (lambda: DeterministicSplitting(offsets=-1), "offsets"),
        (lambda: DiscreteSmoothing(keep=0.5, grid=1), "keep"),
        (lambda: DiscreteSmoothing(keep=1), "keep"),
        (lambda: DiscreteSmoothing(grid=0), "grid"),
        (lambda: RandomizedAblation(keep=0), "keep"),
        (lambda: PatchSmoothing(size=0), "size"),
        (lambda: PatchSmoothing(threshold=math.nan), "threshold"),
    ],
)
def test_options_that_no_run_could_use_are_refused(make: Callable[[], object], option: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert error.value.path == (option,)


@pytest.mark.parametrize(("certifier", "threat"), SAMPLED + EXACT, ids=ids)
def test_other_norms_and_inputs_are_refused(certifier: Certifier, threat: certbench.ThreatModel) -> None:
    with pytest.raises(UnsupportedError, match="L2 is not offered"):
        certbench.certify(certifier, half(4), torch.ones(1, 4), L2)
    if not isinstance(certifier, RandomizedAblation):
        with pytest.raises(ConfigError, match=r"this noise is for \[0, 1\]"):
            certbench.certify(certifier, half(4), torch.full((1, 4), 1.1), threat)


def test_what_a_method_cannot_read_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 1/16"):
        certbench.certify(DeterministicSplitting(grid=16), half(4), torch.full((1, 4), 0.3), L1)
    with pytest.raises(UnsupportedError, match="TwoChannel"):
        certbench.certify(RandomizedAblation(keep=2, encode="two-channel"), half(4), torch.ones(1, 4), L0)
    with pytest.raises(UnsupportedError, match="4 pixels"):
        certbench.certify(RandomizedAblation(keep=5), half(4), torch.ones(1, 4), L0)
    with pytest.raises(UnsupportedError, match="no images"):
        PatchSmoothing(encode="zero").certify(half(4), torch.ones(1, 4))
    with pytest.raises(UnsupportedError, match="larger than the image"):
        PatchSmoothing(size=7).certify(scored(1, 4, 5, 0, 0.0), torch.ones(1, 1, 4, 5))


def test_l0_counts_coordinates_and_has_no_dual() -> None:
    assert (L0.name, str(L0.within(0, 1))) == ("L0", "L0 in [0, 1]")
    with pytest.raises(UnsupportedError, match="dual"):
        _ = L0.q
    with pytest.raises(UnsupportedError, match="L0 is not offered"):
        certbench.certify("crown", half(4), torch.ones(1, 4), L0)


@pytest.mark.parametrize(("certifier", "threat"), SAMPLED)
def test_another_alpha_or_rule_costs_no_forward_pass(
    certifier: Any, threat: certbench.ThreatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "_COUNTED", counting.OrderedDict())
    watched = Watched(Half()).eval()
    classifier, x = Classifier(watched, (4,), 2), grid(4, 1)[:3] * 0.5 + 0.25

    def certify(changed: Any) -> tuple[list[dict[str, Any]], int]:
        state = changed.prepare(classifier, threat)
        state = replace(state, counter=replace(state.counter, key="content", content=False))  # its rows are a buffer
        watched.rows.zero_()  # type: ignore[operator]
        return list(changed.certify(state, x, [1, 2, 3]).evidence), int(watched.rows)  # type: ignore[arg-type]

    built = replace(certifier, n=1500, n0=50, **({"keep": 2} if isinstance(certifier, RandomizedAblation) else {}))
    first, rows = certify(built)
    assert rows == 3 * (1000 + 2000)
    assert certify(replace(built, alpha=0.2, rule="one-vs-rest"))[1] == 0
    assert certify(built) == (first, 0)
    assert certify(replace(built, n=2500))[1] == 3 * 2000
    assert certify(built) == (first, 0)
    other = {"lam": 0.7} if isinstance(certifier, SplittingSmoothing) else {"keep": 1}
    other = {"grid": 64} if isinstance(certifier, DiscreteSmoothing) else other
    assert certify(replace(built, **other))[1] == 3 * 3000
