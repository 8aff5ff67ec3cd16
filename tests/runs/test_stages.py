"""Attacks and estimates of a run: what they change, what they cost, and what happens if they fail."""

import math
from typing import Any

import pytest

from certbench.attacks import battery
from certbench.core.claims import Outcome, Subject
from certbench.runs import work
from tests.support.runs import SMOOTHING, Bench, outcomes

pytestmark = pytest.mark.machine


def test_smoothed_rows_have_no_counterexample_of_the_base(bench: Bench) -> None:
    rows = bench.run(SMOOTHING, "fake", attacks={"steps": 3}).rows
    assert {row.upper for row in rows if row.subject is Subject.SMOOTHED} == {math.inf}
    assert math.inf not in {row.upper for row in rows if row.subject is Subject.BASE}


def test_nobody_is_attacked_for_smoothing_alone(bench: Bench) -> None:
    bench.run(SMOOTHING, attacks={"steps": 3})
    assert "attacked" not in bench.watcher.counts


def test_misclassified_inputs_are_attacked_too(bench: Bench) -> None:
    bench.weights([[0.0, -9.0], [0.0, 1.0], [-9.0, -9.0]])
    rows = bench.run({"name": "fake", "radius": 100.0}, attacks={"steps": 3}).rows
    assert [row.correct for row in rows] == [False, True, True]
    assert all(row.upper < math.inf and row.unsound for row in rows)


def test_an_attack_that_fails_costs_no_certificate_and_is_no_secret(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("no gradient")

    monkeypatch.setattr(work, "attack", broken)
    finished = bench.run("fake", attacks={"steps": 3})
    assert outcomes(finished.rows) == {"fake": {Outcome.COMPLETED}}
    assert finished.unaudited == 3
    assert "attacks on plane failed: RuntimeError: no gradient" in bench.watcher.notes[0]
    monkeypatch.setattr(work, "attack", battery.attack)
    again = bench.run("fake", attacks={"steps": 3})
    assert (again.computed, again.unaudited) == (3, 0)


# estimates

ATTACKS = {"attacks": {"steps": 3}}
CLEVER = {"clever": {"radius": {"2": 5.0}, "batches": 2, "samples": 3}}


def test_estimates_change_no_row_and_are_computed_once(bench: Bench) -> None:
    without = bench.run("lipschitz", SMOOTHING, **ATTACKS)
    assert without.estimates == []
    first = bench.run("lipschitz", SMOOTHING, **ATTACKS, **CLEVER)
    assert (first.computed, bench.watcher.counts["estimated"]) == (3, 3)
    assert (first.rows, first.unaudited) == (without.rows, 0)
    assert [estimate.input for estimate in first.estimates] == [0, 1, 2]
    radii = [row.radius for row in first.rows if row.certifier == "lipschitz"]
    assert [estimate.value for estimate in first.estimates] == pytest.approx(radii)  # the network is linear
    assert all(estimate.value <= estimate.upper < 2 for estimate in first.estimates)
    assert {estimate.method for estimate in first.estimates} == {"clever(batches=2, samples=3, radius=5)"}
    second = bench.run("lipschitz", SMOOTHING, **ATTACKS, **CLEVER)
    assert (second.computed, second.estimates) == (0, first.estimates)
    assert bench.watcher.done == bench.watcher.total == 12
    assert bench.run("lipschitz", SMOOTHING, **ATTACKS).estimates == []


@pytest.mark.parametrize(
    ("change", "computed"),
    [
        ({"clever": {**CLEVER["clever"], "samples": 4}}, 3),
        ({"clever": {**CLEVER["clever"], "radius": {"2": 4.0}}}, 3),
        ({"attacks": {"steps": 0}}, 0),
        ({"batch": 1}, 0),
        ({"model": "renamed"}, 0),
    ],
    ids=str,
)
def test_settings_of_estimates_change_their_keys(bench: Bench, change: dict[str, Any], computed: int) -> None:
    bench.run("fake", **ATTACKS, **CLEVER)
    assert bench.run("fake", **{**ATTACKS, **CLEVER, **change}).computed == computed


def test_only_norms_with_a_radius_and_base_classifiers_are_estimated(bench: Bench) -> None:
    estimates = bench.run("lipschitz", norms=[1, 2], **CLEVER).estimates
    assert [(estimate.norm, estimate.upper) for estimate in estimates] == [(2.0, math.inf)] * 3
    assert bench.run(SMOOTHING, **CLEVER).estimates == []


def test_estimates_that_fail_cost_nothing_and_are_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("no gradient")

    with monkeypatch.context() as patch:
        patch.setattr(work, "clever", broken)
        finished = bench.run("fake", **ATTACKS, **CLEVER)
    assert (outcomes(finished.rows), finished.estimates) == ({"fake": {Outcome.COMPLETED}}, [])
    assert "estimates of plane, L2 failed: RuntimeError: no gradient" in bench.watcher.notes[0]
    again = bench.run("fake", **ATTACKS, **CLEVER)
    assert (again.computed, len(again.estimates)) == (3, 3)
