"""The checker of Lipschitz constants against the certifiers, and against files that were tampered with."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from certbench.checker import lipschitz, rounding
from certbench.checker.reading import Refused, array, written
from certbench.core.certifier import MarginCertifier
from certbench.core.threat import ThreatModel
from certbench.errors import UnsupportedError
from certbench.verifiers.lipschitz.lipsdp import Eclipse, LipSDP
from certbench.verifiers.lipschitz.margin import LayerwiseLipschitz
from tests.support import checking

NORMS = (1.0, 2.0, math.inf)
CERTIFIERS: list[MarginCertifier[Any]] = [
    *(LayerwiseLipschitz(rule=rule) for rule in ("best", "pairwise", "absolute", "tsuzuku", "centred", "naive")),
    LayerwiseLipschitz(rounding_safe=True),
    Eclipse(),
    LipSDP(iterations=30),
]


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("certifier", CERTIFIERS, ids=lambda c: f"{type(c).__name__}-{getattr(c, 'rule', '')}")
def test_agrees_with_the_certifier(certifier: MarginCertifier[Any], p: float, tmp_path: Path) -> None:
    linear = [checking.perceptron(9, 4)] if isinstance(certifier, LipSDP) else []
    for classifier in (*linear, checking.perceptron(9, 8, 7, 4), checking.convolution()):
        read, count = checking.read(classifier, tmp_path), 0
        for claim, evidence in checking.made(certifier, classifier, ThreatModel(p), checking.inputs(classifier, 4)):
            assert checking.refused(lipschitz, claim, evidence, read) == ""
            count += 1
            if isinstance(certifier, LipSDP) or getattr(certifier, "rule", "") == "best":
                larger = replace(claim, radius=claim.radius * 1.0001)
                assert certifier.rounding_safe or checking.refused(lipschitz, larger, evidence, read)  # type: ignore[attr-defined]
        assert count >= 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "certifier", [LayerwiseLipschitz(), Eclipse(), LipSDP(iterations=30)], ids=lambda c: type(c).__name__
)
def test_agrees_on_a_thousand(certifier: MarginCertifier[Any], tmp_path: Path) -> None:
    count = 0
    for p in NORMS:
        for classifier in (checking.perceptron(9, 8, 7, 4), checking.convolution()):
            read = checking.read(classifier, tmp_path)
            for claim, evidence in checking.made(
                certifier, classifier, ThreatModel(p), checking.inputs(classifier, 180)
            ):
                assert checking.refused(lipschitz, claim, evidence, read) == ""
                count += 1
    assert count >= 1000


@pytest.fixture(params=NORMS)
def sample(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, ...]:
    """A claim, its evidence, that of LipSDP for its own, and the network."""
    classifier, threat = checking.perceptron(9, 8, 7, 4), ThreatModel(request.param)
    x = checking.inputs(classifier, 1)
    (first,) = checking.made(LayerwiseLipschitz(rule="pairwise"), classifier, threat, x)
    (second,) = checking.made(LipSDP(iterations=30), classifier, threat, x)
    return first, second, checking.read(classifier, tmp_path)


def test_a_norm_that_is_too_small_or_too_large_is_refused(sample: tuple[Any, ...]) -> None:
    (claim, evidence), _, read = sample
    for factor, least in (
        (1 - 1e-6, "is not proved to bound"),
        (1e-3, "is not proved to bound"),
        (-1, "is not proved"),
    ):
        for name in ("spectral", "box"):
            for i, bound in enumerate(evidence[name]):
                assert least in checking.refused(lipschitz, claim, {**evidence, name: [
                    factor * bound if j == i else other for j, other in enumerate(evidence[name])
                ]}, read)  # fmt: skip
    exact = replace(claim, radius=claim.radius * _largest(claim, evidence, read) * (1 - 1e-9))
    assert checking.refused(lipschitz, exact, evidence, read) == ""
    for i, bound in enumerate(evidence["spectral"]):
        larger = checking.changed(evidence, ("spectral", i), bound * 1.01)
        if claim.norm == 2:
            assert checking.refused(lipschitz, exact, larger, read)


def _largest(claim: Any, evidence: Any, read: Any) -> float:
    """By how much the radius can grow."""
    low, high = 1.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        fine = not checking.refused(lipschitz, replace(claim, radius=claim.radius * middle), evidence, read)
        low, high = (middle, high) if fine else (low, middle)
    return low


def test_multipliers_that_were_changed_are_refused(sample: tuple[Any, ...]) -> None:
    _, (claim, evidence), read = sample
    tight = 0
    assert checking.refused(lipschitz, claim, evidence, read) == ""
    for k, given in enumerate(evidence["multipliers"]):
        if given is None:
            continue
        for where in (("entry",), ("layers", 0), ("layers", 1)):
            found = array(_at(given, where), "multipliers")
            for change in (found * 2, found / 2, -found, found[:-1], np.append(found, 1.0), found * 0, found * 1e300):
                new = checking.changed(evidence, ("multipliers", k, *where), written(change))
                reason = checking.refused(lipschitz, claim, new, read)
                sound = np.array_equal(change, found * 2) or np.array_equal(change, found / 2)
                assert reason or sound
                tight += sound and bool(reason)
    assert tight > 0


def _at(value: Any, where: tuple[Any, ...]) -> Any:
    for part in where:
        value = value[part]
    return value


def test_nothing_that_is_written_raises_or_is_believed(sample: tuple[Any, ...]) -> None:
    rng = np.random.default_rng(0)
    for claim, evidence in sample[:2]:
        larger = replace(claim, radius=claim.radius * 100)
        for where in list(checking.leaves(evidence))[1:]:
            for odd in (checking.ODD[i] for i in rng.permutation(len(checking.ODD))[:3]):
                changed = checking.changed(evidence, where, odd)
                assert checking.refused(lipschitz, larger, changed, sample[2])
                checking.refused(lipschitz, claim, changed, sample[2])
        assert checking.refused(lipschitz, claim, {**evidence, "more": 1}, sample[2])
        assert checking.refused(lipschitz, claim, evidence, None)


def test_the_claim_counts(sample: tuple[Any, ...]) -> None:
    for claim, evidence in sample[:2]:
        for other in range(4):
            changed = replace(claim, prediction=other)
            assert (checking.refused(lipschitz, changed, evidence, sample[2]) == "") == (other == claim.prediction)
    (claim, evidence), _, read = sample
    assert claim.norm == 1 or checking.refused(lipschitz, replace(claim, norm=math.inf, radius=100.0), evidence, read)


def test_constants_are_no_smaller_than_slopes_between_random_points(tmp_path: Path) -> None:
    classifier, rng = checking.perceptron(5, 6, 6, 3), np.random.default_rng(0)
    read = checking.read(classifier, tmp_path)
    x, y = (rng.normal(size=(4000, 5)) for _ in range(2))
    slopes = {}
    for p in NORMS:
        values = [np.array([read.evaluate(point) for point in points]) for points in (x, y)]
        moved = values[0] - values[1]
        slopes[p] = np.abs(moved[:, :1] - moved[:, 1:]).max(axis=1) / np.linalg.norm(x - y, p, axis=1)
    for p in NORMS:
        for claim, evidence in checking.made(
            LayerwiseLipschitz(), classifier, ThreatModel(p), checking.inputs(classifier, 8)
        ):
            rows = lipschitz.rows_of(read.layers()[-1], replace(claim, prediction=0))
            found = lipschitz.constants(claim, read.layers(), rows, evidence["spectral"], evidence["box"])
            assert slopes[p].max() <= found.max()
            break


def test_a_norm_that_power_iteration_gives_is_refused() -> None:
    """It lies below the norm, converged or not."""
    rng = np.random.default_rng(0)
    for shape in ((40, 30), (30, 40), (200, 150), (1, 7), (7, 1)):
        a = rng.normal(size=shape)
        exact = float(np.linalg.svd(a, compute_uv=False)[0])
        with pytest.raises(Refused):
            lipschitz.prove_norm(a, exact * (1 - 1e-12), "a")
        with pytest.raises(Refused):
            lipschitz.prove_norm(a, exact * (1 - 1e-3), "a")
        lipschitz.prove_norm(a, exact * (1 + 1e-10), "a")
        lipschitz.prove_norm(a * 1e-200, exact * 1e-200 * (1 + 1e-10), "a")
        lipschitz.prove_norm(a * 1e200, exact * 1e200 * (1 + 1e-10), "a")


def test_the_norm_of_nothing_is_not_negative() -> None:
    lipschitz.prove_norm(np.zeros((3, 2)), 0.0, "a")
    for bound in (-1.0, -1e-300):
        with pytest.raises(Refused):
            lipschitz.prove_norm(np.zeros((3, 2)), bound, "a")


def test_indefinite_matrices_are_never_proved() -> None:
    rng = np.random.default_rng(1)
    for n in (1, 2, 5, 50):
        basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
        for least in (1e-3, 1e-9, 1e-14, 0.0, -1e-16, -1e-14, -1e-9, -1.0):
            values = np.concatenate([[least], 1 + rng.random(n - 1)])
            a = (basis * values) @ basis.T
            a = (a + a.T) / 2
            assert rounding.positive_semidefinite(a, 0.0) <= (least > 0)
            assert rounding.least_eigenvalue(a, least - 1e-12) <= least + 1e-15 * n
            assert rounding.positive_semidefinite(a, 0.0) or least < 1e-9
            assert not rounding.positive_semidefinite(a, abs(least) * 1.01 + 1e-15)
    assert not rounding.positive_semidefinite(np.full((2, 2), np.nan), 0.0)
    assert not rounding.positive_semidefinite(np.array([[1.0, 0.5], [0.0, 1.0]]), 0.0)
    assert not rounding.positive_semidefinite(np.eye(2), math.nan)


def test_skip_connections_are_refused(tmp_path: Path) -> None:
    from torch import Tensor, nn, relu

    from certbench.core.classifier import Classifier

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.last = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = relu(self.first(x))
            return self.last(relu(self.inner(z)) + z)

    classifier = Classifier(Residual().eval(), (5,), 3, "residual")
    with pytest.raises(UnsupportedError):
        list(checking.made(LayerwiseLipschitz(), classifier, ThreatModel(2.0), checking.inputs(classifier, 4)))
    plain = checking.perceptron(5, 4, 4, 3)
    claim, evidence = next(checking.made(LayerwiseLipschitz(), plain, ThreatModel(2.0), checking.inputs(plain, 4)))
    assert "skip connection" in checking.refused(lipschitz, claim, evidence, checking.read(classifier, tmp_path))
