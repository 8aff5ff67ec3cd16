import math
import subprocess
import sys
from dataclasses import replace

import pytest

from certbench.core.claims import ABSTAIN, Guarantee, Outcome, Subject
from certbench.results.metrics import Summary, attack_curve, curve, summarise, summarise_estimates
from certbench.results.rows import Estimate, Row

PLAIN = Row(
    model="net",
    certifier="crown",
    guarantee=Guarantee.SOUND,
    subject=Subject.BASE,
    norm=2.0,
    input=0,
    label=3,
    prediction=3,
    radius=0.5,
    outcome=Outcome.COMPLETED,
)
SMOOTHED = replace(
    PLAIN, certifier="smoothing", subject=Subject.SMOOTHED, guarantee=Guarantee.PROBABILISTIC, evidence={"alpha": 0.01}
)


def nothing(outcome: Outcome, reason: str = "", row: Row = PLAIN) -> Row:
    return replace(row, prediction=ABSTAIN, radius=0.0, outcome=outcome, reason=reason)


HAND = [
    replace(PLAIN, input=0, radius=0.5, upper=1.0, seconds=1.0, prepare_seconds=7.0),
    replace(PLAIN, input=1, radius=0.2, upper=0.8, seconds=2.0, prepare_seconds=7.0),
    replace(PLAIN, input=2, radius=0.9, upper=0.9, prediction=4, seconds=3.0, prepare_seconds=7.0),
    replace(PLAIN, input=3, radius=0.0, upper=math.inf, seconds=4.0, prepare_seconds=7.0),
    nothing(Outcome.TIMED_OUT, "60 s were spent"),
]


def only(rows: list[Row], *radii: float) -> Summary:
    (summary,) = summarise(rows, {rows[0].norm: radii})
    return summary


def test_formulas_by_hand():
    summary = only(HAND, 0.2, 0.3, 0.5, 0.6)
    assert summary.n == 5
    assert summary.clean_accuracy == 3 / 5
    assert summary.certified_accuracy == ((0.2, 2 / 5), (0.3, 1 / 5), (0.5, 1 / 5), (0.6, 0.0))
    assert summary.mean_radius == pytest.approx((0.5 + 0.2 + 0.9) / 5)
    assert summary.median_radius == 0.2
    assert summary.acr == pytest.approx((0.5 + 0.2) / 5)
    assert summary.tightness == pytest.approx((0.5 / 1.0 + 0.2 / 0.8) / 2)
    assert summary.seconds == pytest.approx(10 / 5)
    assert summary.prepare_seconds == 7.0


def test_radii_are_looked_up_by_norm():
    rows = [PLAIN, replace(PLAIN, norm=math.inf)]
    two, infinity = summarise(rows, {2.0: [0.5], math.inf: [0.6, 0.1]})
    assert two.certified_accuracy == ((0.5, 1.0),)
    assert infinity.certified_accuracy == ((0.6, 0.0), (0.1, 1.0))
    assert summarise([replace(PLAIN, norm=1.0)], {2.0: [0.5]})[0].certified_accuracy == ()


@pytest.mark.parametrize("outcome", [Outcome.TIMED_OUT, Outcome.OUT_OF_MEMORY, Outcome.FAILED])
def test_a_failed_input_stays_in_every_denominator(outcome):
    summary = only([PLAIN, nothing(outcome)], 0.1)
    assert (summary.n, summary.failed) == (2, 1)
    assert (summary.clean_accuracy, summary.certified_accuracy) == (0.5, ((0.1, 0.5),))
    assert (summary.mean_radius, summary.median_radius, summary.acr) == (0.25, 0.25, 0.25)


def test_ways_of_not_being_certified_stay_different():
    rows = [
        PLAIN,
        *[replace(PLAIN, radius=0.0)] * 2,
        *[replace(PLAIN, prediction=1)] * 3,
        *[nothing(Outcome.ABSTAINED)] * 4,
        *[nothing(Outcome.TIMED_OUT, "slow")] * 5,
        nothing(Outcome.OUT_OF_MEMORY, ""),
        nothing(Outcome.OUT_OF_MEMORY, "big"),
        nothing(Outcome.FAILED, "odd"),
        nothing(Outcome.FAILED, "another"),
        nothing(Outcome.FAILED, "third"),
    ]
    summary = only(rows)
    assert (summary.certified, summary.uncertified, summary.misclassified, summary.abstained) == (1, 2, 3, 4)
    assert summary.failures == {Outcome.TIMED_OUT: 5, Outcome.OUT_OF_MEMORY: 2, Outcome.FAILED: 3}
    assert summary.reasons == {Outcome.TIMED_OUT: "slow", Outcome.OUT_OF_MEMORY: "big", Outcome.FAILED: "odd"}
    assert summary.answered + summary.failed == summary.n == len(rows)


def test_a_radius_proved_before_a_time_limit_counts():
    summary = only([replace(PLAIN, outcome=Outcome.TIMED_OUT, reason="60 s")], 0.5)
    assert summary.certified_accuracy == ((0.5, 1.0),)
    assert summary.failed == 1


def test_a_pair_is_unsupported_only_if_every_row_is():
    never = nothing(Outcome.UNSUPPORTED, "no BatchNorm")
    assert only([never, never]).unsupported == "no BatchNorm"
    assert only([never, never]).failed == 0
    assert only([PLAIN, never]).unsupported is None
    assert only([PLAIN, never]).failures == {Outcome.UNSUPPORTED: 1}
    assert only([replace(never, reason="")]).unsupported is not None


UNBOUNDED = [
    replace(PLAIN, radius=math.inf),
    replace(PLAIN, radius=3.0, outcome=Outcome.LIMITED),
    replace(PLAIN, radius=1e4, spec={"search": {"name": "secant", "limit": 1e4}}),  # of an earlier release
]


@pytest.mark.parametrize("row", UNBOUNDED)
@pytest.mark.parametrize("right", [True, False])
def test_an_unbounded_radius_is_counted_apart_and_never_averaged(row, right):
    row = row if right else replace(row, prediction=1)
    small = replace(PLAIN, radius=0.1, upper=0.4)
    summary = only([small, replace(row, upper=1e5), replace(PLAIN, radius=0.3, upper=0.6)], 0.2)
    assert (summary.n, summary.unbounded) == (3, 1)
    assert summary.mean_radius == summary.acr == summary.median_radius == pytest.approx(0.2)
    assert summary.tightness == pytest.approx((0.25 + 0.5) / 2)
    assert summary.certified_accuracy == ((0.2, (1 + right) / 3),)
    alone = only([row])
    assert (alone.unbounded, alone.mean_radius, alone.median_radius, alone.acr) == (1, None, None, None)


def test_a_whole_domain_is_measured_by_its_farthest_point_and_certified_at_every_eps():
    whole = replace(PLAIN, radius=0.7, domain=(0.0, 1.0), evidence={"farthest": 0.7})
    rows = [whole, replace(PLAIN, radius=0.1, domain=(0.0, 1.0))]
    summary = only(rows, 0.5, 0.9)
    assert (summary.unbounded, summary.mean_radius) == (0, pytest.approx(0.4))
    assert summary.certified_accuracy == ((0.5, 0.5), (0.9, 0.5))
    assert curve(rows) == [(0.0, 1.0), (0.1, 1.0), (math.inf, 0.5)]
    assert not replace(whole, prediction=1).certified(0.9)


def test_infinite_and_undefined_radii():
    assert only([PLAIN, replace(PLAIN, radius=math.inf)], 1e9).certified_accuracy == ((1e9, 0.5),)
    undefined = only([PLAIN, replace(PLAIN, radius=math.nan)], 0.1)
    assert (undefined.mean_radius, undefined.certified_accuracy) == (0.25, ((0.1, 0.5),))


def test_unsound_is_a_radius_above_a_counterexample():
    inside = replace(PLAIN, radius=0.5, upper=0.4)
    touching = replace(PLAIN, radius=0.5, upper=0.5)
    assert only([PLAIN, inside, touching]).unsound == 1
    assert replace(inside, prediction=1).unsound  # also where the prediction is not the label


def test_counterexamples_of_the_base_classifier_say_nothing_of_the_smoothed_one():
    row = replace(SMOOTHED, radius=0.5, upper=0.4)
    assert not row.unsound
    assert only([row]).unsound == 0
    assert only([row]).tightness is None
    assert attack_curve([row]) == []


def test_tightness_needs_correct_inputs_with_a_counterexample():
    assert only([PLAIN]).tightness is None
    assert only([replace(PLAIN, prediction=1, upper=1.0)]).tightness is None
    assert only([replace(PLAIN, radius=0.0, upper=0.0)]).tightness is None
    assert only([PLAIN, replace(PLAIN, radius=0.0, upper=1.0)]).tightness == 0.0


def test_expected_wrong_certificates():
    rows = [SMOOTHED, replace(SMOOTHED, radius=0.0), nothing(Outcome.ABSTAINED, row=replace(SMOOTHED, evidence={}))]
    failed = nothing(Outcome.FAILED, row=SMOOTHED)
    assert only([*rows, failed]).alpha == 0.01
    assert only([*rows, failed]).expected_wrong == pytest.approx(0.03)
    assert only([replace(SMOOTHED, evidence={})]).expected_wrong is None
    assert only([replace(SMOOTHED, evidence={}, spec={"alpha": 0.5})]).expected_wrong == 0.5
    assert only([PLAIN]).expected_wrong == 0.0
    assert only([nothing(Outcome.UNSUPPORTED, row=replace(SMOOTHED, evidence={}))]).expected_wrong == 0.0


def test_order_is_norm_domain_model_base_first_certifier():
    rows = [
        replace(PLAIN, norm=math.inf, model="z", certifier="ibp"),
        replace(SMOOTHED, model="z"),
        replace(PLAIN, model="a", certifier="crown"),
        replace(PLAIN, model="a", certifier="ibp"),
        replace(PLAIN, model="z", domain=(0.0, 1.0)),
        replace(PLAIN, model="z"),
    ]
    assert [(s.norm, s.domain, s.model, s.certifier) for s in summarise(rows, {})] == [
        (2.0, None, "z", "crown"),
        (2.0, None, "z", "smoothing"),
        (2.0, None, "a", "ibp"),
        (2.0, None, "a", "crown"),
        (2.0, (0.0, 1.0), "z", "crown"),
        (math.inf, None, "z", "ibp"),
    ]


def test_guarantees_are_never_pooled():
    assert len(summarise([PLAIN, replace(PLAIN, guarantee=Guarantee.COMPLETE)], {})) == 2


def test_the_curve_is_certified_accuracy_at_every_eps():
    rows = [*HAND, replace(PLAIN, radius=0.5), replace(PLAIN, radius=math.inf)]
    steps = curve(rows)
    for eps in (0.0, 1e-9, 0.1, 0.2, 0.2 + 1e-9, 0.4, 0.5, 0.5 + 1e-9, 3.0, math.inf):
        held = next((accuracy for radius, accuracy in steps if eps <= radius), 0.0)
        assert held == only(rows, eps).certified_accuracy[0][1], eps
    assert steps == sorted(set(steps))
    assert curve([]) == []


def test_the_attack_curve_takes_the_closest_counterexample_of_each_input():
    rows = [
        replace(PLAIN, input=0, upper=1.0),
        replace(PLAIN, input=0, upper=0.7, certifier="milp"),
        replace(PLAIN, input=1, upper=0.6, prediction=1),
        replace(PLAIN, input=2, upper=math.inf),
        replace(nothing(Outcome.FAILED), input=2, upper=0.9, certifier="milp"),
    ]
    assert attack_curve(rows) == [(0.0, 2 / 3), (0.7, 2 / 3), (0.9, 1 / 3)]
    assert attack_curve(rows[::-1]) == attack_curve(rows)
    assert attack_curve([PLAIN]) == []


def test_estimates_are_summarised_by_hand():
    guess = Estimate("net", "clever", 2.0, None, 0, value=0.5, cap=2.0, upper=1.0)
    guesses = [
        guess,
        replace(guess, input=1, value=2.0, upper=0.5),
        replace(guess, input=2, value=0.1, upper=math.inf),
        replace(guess, input=3, value=math.nan),
        replace(guess, input=4, value=0.4, upper=0.4),
    ]
    other = replace(guess, model="other", value=math.nan)
    summary, nothing_known = summarise_estimates([*guesses, other])
    assert (summary.model, summary.method, summary.n, summary.capped) == ("net", "clever", 4, 1)
    assert summary.mean == pytest.approx((0.5 + 2.0 + 0.1 + 0.4) / 4)
    assert summary.ratio == pytest.approx((0.5 + 4 + 1) / 3)
    assert (summary.above, summary.attacked) == (1, 3)
    assert (nothing_known.n, nothing_known.mean, nothing_known.ratio) == (0, None, None)


@pytest.mark.parametrize(
    "module", ["results.metrics", "report.tables", "report.html", "comparison.compare", "files.writing"]
)
def test_reports_import_nothing_heavy(module):
    heavy = {"torch", "scipy", "numpy", "cvxpy"}
    code = f"import sys, certbench.{module}; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
