"""Rows that contradict one another are found, by the law that they break; rows that agree are not."""

import math
from dataclasses import replace
from typing import Any

import pytest

from certbench.auditing.contradictions import examine
from certbench.core.claims import ABSTAIN, Guarantee, Outcome, Subject
from certbench.core.evidence import MarginEvidence
from certbench.results.rows import Row


def row(name: str, radius: float, norm: float = 2.0, **more: object) -> Row:
    options = {key: more.pop(key) for key in ("rule", "layers", "of", "search", "rounding_safe") if key in more}
    base = Row(
        model="m", certifier=name, guarantee=Guarantee.SOUND, subject=Subject.BASE, norm=norm, input=0, label=1,
        prediction=1, radius=radius, outcome=Outcome.COMPLETED, spec={"name": name, **options},
    )  # fmt: skip
    return replace(base, **more)  # type: ignore[arg-type]


def unsound(*rows: Row) -> list[bool]:
    return [finding.unsound for finding in examine(rows)]


def test_no_radius_exceeds_a_complete_certifiers_counterexample() -> None:
    exact = row("branch-and-bound", 0.3, guarantee=Guarantee.COMPLETE, upper=0.301)
    assert unsound(exact, row("crown", 0.30)) == []
    (finding,) = examine([exact, row("crown", 0.31)])
    assert finding.unsound
    assert finding.row.certifier == "crown"
    assert finding.other.certifier == "branch-and-bound"
    assert "0.301" in str(finding)


def test_a_counterexample_counts_also_where_its_row_has_no_answer() -> None:
    failed = row("crown", 0.0, prediction=ABSTAIN, outcome=Outcome.FAILED, upper=0.1)
    assert unsound(failed, row("ibp", 0.05)) == []
    assert unsound(failed, row("ibp", 0.5)) == [True]


@pytest.mark.parametrize(
    ("radius_norm", "upper_norm", "radius_domain", "upper_domain", "caught"),
    [
        (math.inf, 2.0, None, None, True),  # |d|_inf <= |d|_2
        (2.0, 1.0, None, None, True),
        (2.0, math.inf, None, None, False),
        (2.0, 2.0, None, (0.0, 1.0), True),  # what lies in the box lies in R^d
        (2.0, 2.0, (0.0, 1.0), None, False),
        (2.0, 2.0, (0.0, 1.0), (0.0, 1.0), True),
        (2.0, 2.0, (0.0, 1.0), (-1.0, 1.0), False),
        (2.0, 2.0, (-1.0, 2.0), (0.0, 1.0), True),  # a box that holds the other
        (2.0, 0.0, None, None, False),  # L0 counts coordinates
        (0.0, 0.0, None, None, True),
    ],
)
def test_counterexamples_count_where_they_lie_in_the_ball(
    radius_norm: float,
    upper_norm: float,
    radius_domain: tuple[float, float] | None,
    upper_domain: tuple[float, float] | None,
    caught: bool,
) -> None:
    claim = row("crown", 1.0 if radius_norm == 0 else 2.0, radius_norm, domain=radius_domain)
    attacked = row("ibp", 0.0, upper_norm, domain=upper_domain, upper=1.0)
    assert unsound(claim, attacked) == ([True] if caught else [])


def test_two_certified_classes_are_one_too_many() -> None:
    assert unsound(row("crown", 0.1), row("ibp", 0.1, prediction=2)) == [True]
    assert unsound(row("crown", 0.1), row("ibp", 0.0, prediction=2)) == []
    assert unsound(row("crown", 0.1), row("ibp", 0.0, prediction=ABSTAIN)) == []


def test_smoothed_classifiers_are_functions_of_their_own() -> None:
    smoothed = row("smoothing", 5.0, subject=Subject.SMOOTHED, prediction=2)
    assert unsound(smoothed, row("crown", 0.1, upper=0.2)) == []


def test_another_input_or_model_says_nothing() -> None:
    attacked = row("ibp", 0.0, upper=0.1)
    assert unsound(row("crown", 1.0), replace(attacked, input=1), replace(attacked, model="n")) == []


SAMPLED: dict[str, Any] = {"subject": Subject.SMOOTHED, "guarantee": Guarantee.PROBABILISTIC}


@pytest.mark.parametrize("more", [{}, SAMPLED], ids=["base", "smoothed"])
def test_radii_that_are_no_numbers_are_found(more: dict[str, Any]) -> None:
    assert unsound(row("crown", math.nan, **more)) == [True]
    assert unsound(row("crown", -0.1, **more)) == [True]
    assert unsound(row("crown", -math.inf, **more)) == [True]
    assert unsound(row("crown", 0.1, prediction=ABSTAIN, **more)) == [True]
    assert unsound(row("crown", 0.0, prediction=ABSTAIN, **more)) == []


def test_samples_prove_no_infinite_radius() -> None:
    assert unsound(row("crown", math.inf)) == []
    assert unsound(row("smoothing", math.inf, **SAMPLED)) == [True]
    assert unsound(row("smoothing", math.inf, **SAMPLED, evidence={"constants": {"2": 0.0}})) == []
    assert unsound(row("smoothing", math.inf, **SAMPLED, evidence={"also": [{"constants": {"2": 0.0}}]})) == []
    assert unsound(row("smoothing", math.inf, **SAMPLED, evidence={"constants": {"2": 1.0}})) == [True]


def searched(evaluations: int) -> dict[str, Any]:
    return MarginEvidence(bracket=(0.19, 0.1901), evaluations=evaluations, arithmetic="real").to_json()


@pytest.mark.parametrize(
    ("small", "great"),
    [
        (row("lipschitz", 0.2, rule="pairwise"), row("lipschitz", 0.19, rule="best", evidence=searched(5))),
        (row("lipschitz", 0.2, rule="naive"), row("lipschitz", 0.19, rule="pairwise", evidence=searched(5))),
        (row("crown", 0.2), row("best-of", 0.19, of=[{"name": "crown"}])),
    ],
    ids=["best", "pairwise", "best-of"],
)
def test_orders_that_are_theorems_hold_as_far_as_the_search_looks(small: Row, great: Row) -> None:
    assert unsound(small, great) == [False]
    assert unsound(small, replace(great, radius=0.2 * 0.9995)) == []
    assert unsound(small, replace(great, domain=(0.0, 1.0))) == []
    assert unsound(small, replace(great, radius=0.0, outcome=Outcome.TIMED_OUT)) == []
    if "of" in great.spec:
        assert unsound(small, replace(great, spec={**great.spec, "relative": 0.1})) == []
        assert unsound(small, replace(great, evidence={"refused": {"crown": "out of memory"}})) == []
        return
    assert unsound(small, replace(great, spec={**great.spec, "rounding_safe": True})) == []
    for search in (
        {"name": "secant", "relative": 0.1},
        {"name": "ladder", "eps": [0.1]},
        {"name": "bisection", "limit": 0.19},
    ):
        assert unsound(small, replace(great, spec={**great.spec, "search": search})) == []
    assert unsound(small, replace(great, evidence=searched(60))) == []  # the search ended early
    assert unsound(small, replace(great, evidence=searched(59))) == [False]
    assert unsound(small, replace(great, evidence={})) == []  # nobody knows where it ended


def test_orders_that_are_no_theorems_are_left_alone() -> None:
    assert unsound(row("ibp", 0.3), row("crown", 0.2)) == []
    assert unsound(row("lp", 0.3), row("sdp", 0.2)) == []
    assert unsound(row("wong-kolter", 0.3), row("crown", 0.2)) == []
    assert unsound(row("crown", 0.3), row("alpha-crown", 0.2)) == []
    assert unsound(row("crown", 0.3), row("lp", 0.2)) == []
    assert unsound(row("alpha-crown", 0.3), row("lp", 0.2)) == []
    assert unsound(row("lipschitz", 0.3, rule="naive"), row("lipschitz", 0.2, rule="tsuzuku")) == []
    assert unsound(row("lipschitz", 0.3, rule="tsuzuku"), row("lipschitz", 0.2, rule="naive")) == []


def test_a_certifier_that_cannot_be_built_here_is_in_no_order() -> None:
    assert unsound(row("lipschitz", 0.3, rule="naive"), row("elsewhere", 0.2)) == []
    assert unsound(row("lipschitz", 0.3, rule="of tomorrow"), row("lipschitz", 0.2, rule="best")) == []
