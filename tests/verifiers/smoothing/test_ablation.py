import itertools
import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from scipy.stats import chi2
from torch import nn

import certbench
from certbench import Certifier, Classifier
from certbench.core.threat import L0
from certbench.verifiers.smoothing.ablation import (
    Ablation,
    DiscreteSmoothing,
    RandomizedAblation,
    Replacement,
    TwoChannel,
)
from tests.support.grids import Half, Shown, grid, half, stream, table

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
