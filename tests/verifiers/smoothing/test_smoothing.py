import math
from fractions import Fraction

import pytest
import torch
from scipy.special import ndtri
from scipy.stats import beta, norm

import certbench
from certbench import ABSTAIN, L1, L2, Classifier, Linf
from certbench.verifiers.smoothing.confidence import binomial
from certbench.verifiers.smoothing.counting import ESTIMATION, Counter
from certbench.verifiers.smoothing.hidden_layers import Place
from certbench.verifiers.smoothing.noise.families import Gaussian
from certbench.verifiers.smoothing.smoothing import Smoothing
from tests.support.halfspaces import Broken, halfspace, points

pytestmark = pytest.mark.machine


def radius(certifier: Smoothing, top: int, counts: list[int], n: int) -> float:
    """The L2 radius of a class, given its counts."""
    return Place(None, certifier.noise, {2.0: 1.0}, 4).radius(*certifier.probabilities(top, counts, n))


@pytest.mark.parametrize("rule", ["two-class", "one-vs-rest"])
def test_radii_exceed_the_true_one_no_more_often_than_alpha(rule: str) -> None:
    certifier = Smoothing(Gaussian(0.5), n=200, n0=20, alpha=0.1, rule=rule)  # type: ignore[arg-type]
    certificate = certbench.certify(certifier, halfspace(), points(400, 0.3), L2)
    wrong = int((certificate.radius > 0.3).sum()) + int((certificate.prediction == 0).sum())
    assert 1 <= wrong <= 63  # Binomial(400, 0.1) is above 63 with probability 1e-4


def exact_tail(k: int, n: int, p: float) -> Fraction:
    """P[Bin(n, p) >= k] for the very float p."""
    q = Fraction(p)
    return sum((math.comb(n, i) * q**i * (1 - q) ** (n - i) for i in range(k, n + 1)), Fraction(0))


@pytest.mark.parametrize(("k", "n"), [(1, 1), (0, 7), (7, 7), (3, 10), (50, 60), (60, 60), (1, 60)])
@pytest.mark.parametrize("alpha", [0.5, 0.05, 0.001])
def test_confidence_bounds_are_never_inside_the_exact_ones_and_close(k: int, n: int, alpha: float) -> None:
    low, high = binomial.lower(k, n, alpha), binomial.upper(k, n, alpha)
    assert k == 0 or exact_tail(k, n, low) <= Fraction(alpha)
    assert k == n or 1 - exact_tail(k + 1, n, high) <= Fraction(alpha)
    assert low == 0 if k == 0 else math.isclose(low, beta.ppf(alpha, k, n - k + 1), rel_tol=1e-8)
    assert math.isclose(high, 1 - binomial.lower(n - k, n, alpha), rel_tol=1e-8)


@pytest.mark.parametrize(
    ("n", "cap"), [(100, 1.500), (1000, 2.463), (10_000, 3.199), (100_000, 3.811), (1_000_000, 4.347)]
)
def test_the_radius_is_capped_by_the_number_of_draws(n: int, cap: float) -> None:
    found = radius(Smoothing(Gaussian(1.0), rule="one-vs-rest"), 0, [n, 0], n)
    assert found == pytest.approx(cap, abs=6e-4)
    assert found <= norm.ppf(0.001 ** (1 / n))


@pytest.mark.parametrize("own", [0, 50, 56, 70, 90, 99, 100])
def test_one_vs_rest_is_the_pseudo_code_of_cohen(own: int) -> None:
    p = beta.ppf(0.001, own, 100 - own + 1) if own else 0.0
    expected = 0.5 * float(ndtri(p)) if p > 0.5 else 0.0
    found = radius(Smoothing(Gaussian(0.5), rule="one-vs-rest"), 1, [100 - own, own, 0], 100)
    assert found == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("rule", ["two-class", "one-vs-rest"])
def test_ties_and_draws_without_a_vote_certify_nothing(rule: str) -> None:
    certifier = Smoothing(rule=rule)  # type: ignore[arg-type]
    assert radius(certifier, 0, [500, 500, 0], 1000) == 0
    assert radius(certifier, 0, [400, 0, 0], 1000) == 0  # 600 draws were NaN: one more rival
    assert radius(certifier, 1, [900, 100, 0], 1000) == 0


def test_two_classes_certify_where_the_rest_is_split() -> None:
    split = [450, 110, 110, 110, 110, 110]
    assert radius(Smoothing(rule="two-class"), 0, split, 1000) > 0
    assert radius(Smoothing(rule="one-vs-rest"), 0, split, 1000) == 0


def test_nan_votes_for_no_class() -> None:
    classifier = Classifier(Broken().eval(), (4,), 2)
    votes = Counter.of(classifier, Gaussian(1.0)).count(points(1, 0.0), 1500, [0], ESTIMATION)[0]
    assert votes[0] == 0
    assert 600 < int(votes.sum()) < 900
    certificate = certbench.certify({"name": "smoothing", "n": 1500}, classifier, points(2, 0.0), L2)
    assert (certificate.prediction == ABSTAIN).all()


def test_more_draws_extend_fewer() -> None:
    few, many = (Counter.of(halfspace(), Gaussian(1.0)).count(points(1, 0.1), n, [3], ESTIMATION) for n in (1500, 2500))
    assert int(few.sum()) == 1500
    assert int(many.sum()) == 2500
    assert (few <= many).all()


def test_l1_is_the_l2_radius_and_linf_divides_it_by_the_root_of_d() -> None:
    one, two, sup = (certbench.certify({"name": "smoothing", "n": 1000}, halfspace(), points(3, 0.4), t).radius
                     for t in (L1, L2, Linf))  # fmt: skip
    assert torch.equal(one, two)
    assert (sup <= two / 2).all()
    torch.testing.assert_close(sup, two / 2)


def test_predict_abstains_at_the_boundary_and_needs_eleven_draws() -> None:
    far, near = points(5, 3.0), points(5, 0.0)
    certifier = Smoothing(n=1000)
    assert (certifier.predict(halfspace(), far) == 1).all()
    assert (certifier.predict(halfspace(), near) == ABSTAIN).all()
    assert (Smoothing(n=10).predict(halfspace(), far) == ABSTAIN).all()
    assert (Smoothing(n=11).predict(halfspace(), far) == 1).all()
