"""Comparing runs: every class of a change, and counts of smoothing as counts."""

import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta

from certbench import ABSTAIN, ConfigError, Guarantee, Outcome, Subject
from certbench.comparison.classes import Kind, classify
from certbench.comparison.compare import Change, Comparison, compare
from certbench.comparison.policy import Policy
from certbench.comparison.side import Known, Side
from certbench.results.rows import Row
from tests.support.comparing import called, counted, kind, row, side


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        (0.5, math.nan, Kind.NON_FINITE),
        (0.5, math.inf, Kind.NON_FINITE),
        (0.5, -0.1, Kind.NON_FINITE),
        (math.nan, math.nan, Kind.NON_FINITE),
        (math.inf, math.inf, Kind.SAME),
        (0.5, 0.5, Kind.SAME),
        (0.0, 0.0, Kind.SAME),
        (0.5, 0.5 * (1 + 7e-4), Kind.NOISE),
        (0.5, 0.5 - 3e-5, Kind.NOISE),
        (1e-5, 0.0, Kind.NOISE),
        (0.5, 0.0, Kind.LOST),
        (0.0, 0.5, Kind.GAINED),
        (math.nan, 0.5, Kind.GAINED),
        (0.5, 0.49, Kind.LOOSER),
        (math.inf, 0.5, Kind.LOOSER),
        (0.5, 0.51, Kind.TIGHTER),
    ],
)
def test_radii_of_the_same_question(old: float, new: float, wanted: Kind) -> None:
    assert classify(old, new) is wanted
    assert kind(row(old), row(new)) is wanted


def test_a_radius_that_now_ends_at_the_domain_is_not_looser() -> None:
    old, new = row(1e4, domain=(0.0, 1.0)), row(0.7, domain=(0.0, 1.0))
    assert kind(old, replace(new, evidence={"farthest": 0.7})) is Kind.SAME
    assert kind(old, new) is Kind.LOOSER


def test_a_counterexample_of_either_run_refutes_in_any_class() -> None:
    assert classify(0.5, 0.5, upper=0.4) is Kind.UNSOUND
    assert kind(row(0.5), row(0.5, upper=0.4)) is Kind.UNSOUND
    assert kind(row(0.5, upper=0.4), row(0.5)) is Kind.UNSOUND
    assert kind(row(0.5, upper=0.4), row(0.3)) is Kind.LOOSER  # mended
    assert kind(row(0.4, upper=0.4), row(0.4)) is Kind.SAME
    other = row(0.2, upper=0.4, certifier="ibp", spec={"name": "ibp"})
    kinds = {
        change.row.certifier: change.kind for change in compare(side(row(0.5), other), side(row(0.5), other)).changes
    }
    assert kinds == {"crown": Kind.UNSOUND, "ibp": Kind.SAME}
    assert kind(row(0.5, input=3), row(0.5, input=3, upper=0.4, norm=2.0)) is Kind.UNSOUND
    for elsewhere in ({"norm": 1.0}, {"input": 1}, {"domain": (0.0, 1.0)}, {"subject": Subject.SMOOTHED}):
        far = replace(other, **elsewhere)
        assert {c.kind for c in compare(side(row(0.5), far), side(row(0.5), far)).changes} <= {Kind.SAME}
    known = side(row(0.5), known={("net", 2.0, None, 0): Known(0.4, "counterexample")})
    assert compare(known, side(row(0.5))).exit_code == 3
    changed = compare(known, side(row(0.5), models={"net": "b"}))  # a counterexample of another network
    assert [change.kind for change in changed.changes] == [Kind.INCOMPARABLE]


def test_a_complete_answer_refutes_what_exceeds_it() -> None:
    exact = row(0.4, certifier="milp", spec={"name": "milp"}, guarantee=Guarantee.COMPLETE, upper=0.7)
    (_, change) = compare(side(exact, row(0.45)), side(exact, row(0.45))).changes
    assert change.kind is Kind.UNSOUND and "milp, complete at 0.4" in change.detail
    assert compare(side(exact, row(0.45)), side(row(0.45))).changes[0].kind is Kind.UNSOUND
    for weaker in (
        replace(exact, outcome=Outcome.TIMED_OUT),
        replace(exact, radius=0.0),
        replace(exact, spec={"name": "milp", "search": {"name": "ladder"}}),
        replace(exact, evidence={"bracket": [0.4, 0.46]}),
        replace(exact, evidence={"bracket": [0.4, "inf"]}),
    ):
        assert compare(side(weaker, row(0.45)), side(weaker, row(0.45))).exit_code == 0


def test_rows_that_one_side_lacks() -> None:
    both = compare(side(row(0.5), row(0.1, input=1)), side(row(0.5), row(0.1, input=2)))
    assert Counter(change.kind for change in both.changes) == {Kind.SAME: 1, Kind.MISSING: 1, Kind.NEW: 1}
    assert both.exit_code == 1
    assert compare(side(row(0.5)), side(row(0.5), row(math.nan, input=2))).exit_code == 3


def test_other_content_is_incomparable_and_wrong_rows_are_wrong_all_the_same() -> None:
    for other in ({"models": {"net": "b"}}, {"models": {}}, {"data": "e"}, {"data": ""}):
        comparison = compare(side(row(0.5)), side(row(0.1), **other))
        assert [change.kind for change in comparison.changes] == [Kind.INCOMPARABLE] and comparison.exit_code == 4
        assert compare(side(row(0.5)), side(row(math.nan), **other)).exit_code == 3


def test_flips() -> None:
    assert kind(row(0.5), row(0.5, prediction=2)) is Kind.LABEL_FLIP
    assert kind(row(0.5), row(0.5, label=2)) is Kind.LABEL_FLIP
    assert kind(row(0.5), row(0.0, prediction=ABSTAIN)) is Kind.LOST


def test_outcomes_without_an_answer_are_lost_even_at_radius_0() -> None:
    failed = row(0.0, outcome=Outcome.TIMED_OUT, reason="the limit was spent")
    (change,) = compare(side(row(0.0)), side(failed)).changes
    assert change.kind is Kind.LOST and "timed out: the limit was spent" in change.detail
    assert kind(failed, row(0.0)) is Kind.GAINED
    assert kind(failed, failed) is Kind.SAME
    timed_out = row(0.5, outcome=Outcome.TIMED_OUT, reason="slow")
    (change,) = compare(side(row(0.5)), side(timed_out)).changes
    assert (change.kind, change.detail) == (Kind.LOST, "timed out: slow")
    assert kind(timed_out, row(0.5)) is Kind.GAINED and kind(timed_out, row(0.4)) is Kind.LOOSER
    assert kind(timed_out, timed_out) is Kind.SAME and kind(row(0.5), row(0.5, outcome=Outcome.FAILED)) is Kind.LOST
    assert kind(counted([10, 984, 6], 0.4), counted([11, 983, 6], 0.4, "1", outcome=Outcome.FAILED)) is Kind.LOST


def test_another_claim_is_incomparable() -> None:
    for change in (
        {"guarantee": Guarantee.COMPLETE},
        {"guarantee": Guarantee.PROBABILISTIC},
        {"subject": Subject.SMOOTHED},
    ):
        comparison = compare(side(row(0.5)), side(row(0.5, **change)))
        assert [one.kind for one in comparison.changes] == [Kind.INCOMPARABLE] and comparison.exit_code == 4


def test_whoever_names_no_class_has_no_radius() -> None:
    both = row(0.5, prediction=ABSTAIN)
    assert kind(both, both) is Kind.UNSOUND and kind(row(0.5), both) is Kind.UNSOUND
    draws = counted([10, 984, 6], 0.4, prediction=ABSTAIN)
    assert kind(draws, draws) is Kind.UNSOUND


def test_in_l0_a_counterexample_at_the_radius_refutes_it() -> None:
    assert kind(row(3.0, norm=0.0), row(3.0, norm=0.0, upper=3.0)) is Kind.UNSOUND
    assert kind(row(3.0, norm=0.0, upper=4.0), row(3.0, norm=0.0)) is Kind.SAME
    assert kind(row(3.0), row(3.0, upper=3.0)) is Kind.SAME
    place = ("net", 0.0, None, 0)
    known = side(row(3.0, norm=0.0), known={place: Known(3.0, "counterexample")})
    assert compare(known, side(row(3.0, norm=0.0))).exit_code == 3


def test_a_new_option_makes_no_new_certifier() -> None:
    new = row(0.4, spec={"name": "crown", "rounding_safe": False})
    assert kind(row(0.5), new) is Kind.LOOSER
    changed = replace(new, spec={"name": "crown", "steps": 3})
    kinds = [change.kind for change in compare(side(new, changed), side(row(0.4))).changes]
    assert sorted(kinds) == [Kind.MISSING, Kind.MISSING, Kind.NEW]  # nobody can say which of the two it was
    steps = [row(0.4, spec={"name": "crown", "steps": number}) for number in (3, 4)]
    assert {change.kind for change in compare(side(steps[0]), side(steps[1])).changes} == {Kind.MISSING, Kind.NEW}


def test_counts_are_compared_as_counts() -> None:
    old = counted([10, 984, 6], 0.46)
    assert kind(old, counted([10, 984, 6], 0.46)) is Kind.SAME
    assert kind(old, counted([10, 984, 6], 0.40)) is Kind.LOOSER  # the same draws, another radius: a bug
    assert kind(old, counted([15, 978, 7], 0.43, "1")) is Kind.NOISE
    assert kind(old, counted([10, 984, 6], 0.0, "1")) is Kind.NOISE  # other draws selected another class
    assert kind(old, counted([90, 890, 20], 0.2, "1")) is Kind.LOOSER
    assert kind(old, counted([480, 500, 20], 0.0, "1")) is Kind.LOST
    assert kind(counted([480, 500, 20], 0.0), old) is Kind.GAINED
    assert kind(counted([400, 590, 10], 0.1), counted([420, 570, 10], 0.0, "1")) is Kind.NOISE  # abstained by chance
    assert kind(old, counted([984, 10, 6], 0.46, "1", prediction=0)) is Kind.LABEL_FLIP
    assert kind(counted([990, 10, 0], 0.4), counted([900, 100, 0], 0.4, "1")) is Kind.LOOSER
    # the runner-up alone: 500 of 1000 as before, but against 490 in place of 100
    spread = counted([500, 100, 100, 100, 100, 100], 0.3)
    assert kind(spread, counted([500, 490, 3, 3, 2, 2], 0.0, "1")) is Kind.LOST


def drawn(counts: list[int], seed: str = "1", **more: Any) -> Row:
    """A row of gaussian smoothing whose radius is what its counts prove, with all of its evidence."""
    n = sum(counts)
    evidence = {
        "counts": counts, "selection": [0, 9, 1], "n": n, "alpha": 0.001, "rule": "one-vs-rest", "p_upper": 0.0,
        "p_lower": 0.0, "noise": {"name": "gaussian", "sigma": 0.25}, "sigma": 0.25, "scale": 0.25, "dimension": 6,
        "seed": seed.zfill(32),
    }  # fmt: skip
    p = float(beta.ppf(0.001, counts[1], n - counts[1] + 1)) * (1 - 1e-9)
    evidence |= {"p_lower": p, "p_upper": 1 - p}
    radius = 0.25 * NormalDist().inv_cdf(p) * (1 - 1e-9)
    return counted([], **({"radius": max(radius, 0.0), "evidence": evidence} | more))


def test_a_radius_is_what_its_own_counts_prove() -> None:
    old, new = drawn([10, 984, 6], "0"), drawn([15, 978, 7])
    assert kind(old, new) is kind(drawn([15, 978, 7], "0"), drawn([10, 984, 6])) is Kind.NOISE
    kept = {name: old.evidence[name] for name in ("counts", "n", "rule", "seed")}
    for before in (old, replace(old, evidence=kept)):  # a run, and a baseline
        assert kind(before, new) is Kind.NOISE
        assert kind(before, replace(new, radius=new.radius * 1.5)) is Kind.UNSOUND
        assert kind(before, replace(new, radius=new.radius * 0.3)) is Kind.LOOSER
        assert kind(before, replace(new, radius=new.radius * (1 - 1e-4))) is Kind.LOOSER
        assert kind(before, replace(new, radius=0.0, prediction=ABSTAIN)) is Kind.LOST
        assert kind(before, replace(new, prediction=2)) is Kind.UNSOUND
        assert kind(before, replace(new, prediction=ABSTAIN)) is Kind.UNSOUND
        assert kind(before, replace(new, outcome=Outcome.FAILED)) is Kind.LOST
        weak = replace(new, radius=0.1, evidence={**new.evidence, "p_lower": 0.75, "p_upper": 0.25})
        (change,) = compare(side(before), side(weak)).changes
        assert change.kind is Kind.LOOSER and change.detail.startswith("its own counts prove 0.4")
    assert kind(drawn([480, 500, 20], "0"), drawn([470, 510, 20])) is Kind.SAME  # both abstain, as they must
    other = replace(new, radius=0.0, prediction=ABSTAIN, evidence={**new.evidence, "selection": [9, 1, 0]})
    assert kind(old, other) is Kind.NOISE  # the draws of the selection named another class, and so nothing is proved
    unknown = {**new.evidence, "layer": "0", "constants": {"2": 1.0}}  # noise that is not re-checked
    assert kind(old, replace(new, evidence=unknown, prediction=2)) is Kind.LABEL_FLIP


def test_other_counts_of_the_same_seed_are_tested_too() -> None:
    old, new = drawn([10, 984, 6], "0"), drawn([10, 983, 7], "0")  # another processor
    assert kind(old, new) is Kind.NOISE
    assert kind(old, replace(new, radius=old.radius * 0.95)) is Kind.LOOSER
    assert kind(old, drawn([60, 900, 40], "0")) is Kind.LOOSER


def test_counts_that_are_none_are_no_tracebacks() -> None:
    old = drawn([10, 984, 6], "0")
    for change in (
        {"counts": ["a", 2, 3]},
        {"counts": [-1, 984, 6]},
        {"n": "1000"},
        {"n": 3},
        {"n": 10**30},
    ):
        odd = replace(old, evidence={**old.evidence, **change})
        assert kind(old, odd) is Kind.UNSOUND  # its own evidence does not prove it
        assert kind(odd, old) is Kind.INCOMPARABLE
        assert kind(old, replace(odd, radius=0.0, prediction=ABSTAIN)) is Kind.INCOMPARABLE


def test_randomness_without_counts_is_incomparable_unless_the_seed_is_the_same() -> None:
    sums = {"evidence": {"sums": [1, 2], "seed": "0"}}
    assert kind(counted([], 0.5, **sums), counted([], 0.4, **sums)) is Kind.LOOSER
    assert kind(counted([], 0.5, **sums), counted([], 0.5, evidence={"sums": [1, 2], "seed": "1"})) is Kind.INCOMPARABLE


def simulated(rng: np.random.Generator, truth: np.ndarray, seed: str, n: int = 1000) -> Side:
    rows = []
    for i, shares in enumerate(rng.multinomial(n, truth).tolist()):
        top = max(shares) / n
        low = min(max(top - 3 * math.sqrt(top * (1 - top) / n), 1e-6), 1 - 1e-3)
        rows.append(counted(shares, max(0.0, 0.25 * NormalDist().inv_cdf(low)), seed, input=i, prediction=1))
    return side(*rows)


def truths(rng: np.random.Generator, inputs: int = 200) -> np.ndarray:
    """Top classes of probability 0.6 to 1, as on images that are classified well."""
    top = 1 - 0.4 * rng.beta(0.7, 2.0, (inputs, 1))
    return np.hstack([top, (1 - top) * rng.dirichlet(np.full(9, 0.5), inputs)])


def alarms(pairs: int, fall: float, seed: int) -> tuple[int, int, int]:
    """Of so many pairs: those that fail, those that find the input that fell, and those with a radius 5 % less."""
    rng = np.random.default_rng(seed)
    failed = found = naive = 0
    for _ in range(pairs):
        truth = truths(rng)
        old = simulated(rng, truth, "0")
        victim = int(rng.integers(len(truth)))
        before = truth[victim, 0]
        truth[victim, 0] *= 1 - fall
        truth[victim, 1] += before * fall
        comparison = compare(old, simulated(rng, truth, "1"))
        failed += comparison.exit_code == 1
        changed = {Kind.LOOSER, Kind.LOST, Kind.LABEL_FLIP}
        found += any(change.kind in changed and change.row.input == victim for change in comparison.changes)
        naive += any(change.size < -0.05 for change in comparison.changes)
    return failed, found, naive


def test_new_seeds_raise_no_alarm_and_one_input_that_fell_does() -> None:
    failed, _, naive = alarms(15, 0.0, seed=0)
    assert failed == 0 and naive == 15
    assert alarms(15, 0.15, seed=1)[1] >= 12


@pytest.mark.slow
def test_new_seeds_raise_a_false_alarm_in_at_most_1_percent_of_200_pairs() -> None:
    failed, _, naive = alarms(200, 0.0, seed=2)
    assert failed <= 2 and naive == 200
    assert alarms(200, 0.15, seed=3)[1] >= 160


def test_what_cannot_be_compared_is_said(sides: dict[str, Side], tmp_path: Path) -> None:
    sides["empty"] = side(name="empty")
    for arguments, options in (
        (("old", "empty"), {}),
        (("old", "new"), {"shape": "xml"}),
        (("old", "new"), {"policy": tmp_path / "none.yaml"}),
    ):
        with pytest.raises(ConfigError):
            called(*arguments, **options)


def test_a_change_has_a_size() -> None:
    sizes = [Change(Kind.SAME, row(old), row(new)).size for old, new in ((1, 0.9), (0, 1), (math.inf, 1), (1, 1))]
    assert sizes == [pytest.approx(-0.1), math.inf, -math.inf, 0.0]
    assert Comparison(side(), side(), Policy(), []).exit_code == 0


def test_nothing_heavy_is_imported() -> None:
    code = "import certbench.pytest_plugin, certbench.results.significance, sys\n"
    code += "from certbench.comparison import baseline, compare, output, policy, side, update\n"
    code += "assert not {'torch', 'numpy', 'scipy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
