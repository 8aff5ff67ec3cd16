"""Comparing runs: every class, counts of smoothing as counts, policies, exit codes and formats."""

import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from scipy.stats import beta, fisher_exact

from certbench import ABSTAIN, ConfigError, Guarantee, Outcome, Subject
from certbench.comparison import baseline as baselines
from certbench.comparison.classes import Kind, Tolerance, classify
from certbench.comparison.compare import Change, Comparison, compare
from certbench.comparison.output import SHAPES, shape_of
from certbench.comparison.policy import Policy, load
from certbench.comparison.side import Known, Side
from certbench.results.rows import Row
from certbench.results.significance import fisher, holm

FINGERPRINTS = {"net": "a" * 64}


def row(radius: float, **more: Any) -> Row:
    values: dict[str, Any] = {
        "model": "net", "certifier": "crown", "guarantee": Guarantee.SOUND, "subject": Subject.BASE, "norm": 2.0,
        "input": 0, "label": 1, "prediction": 1, "outcome": Outcome.COMPLETED, "spec": {"name": "crown"},
    }  # fmt: skip
    return Row(radius=radius, **(values | more))


def side(*rows: Row, **more: Any) -> Side:
    return Side(**({"name": "run", "rows": rows, "models": FINGERPRINTS, "data": "d"} | more))


def counted(counts: list[int], radius: float, seed: str = "0", **more: Any) -> Row:
    evidence = {"counts": counts, "n": sum(counts), "rule": "two-class", "seed": seed}
    return row(
        radius, certifier="smoothing", spec={"name": "smoothing"}, guarantee=Guarantee.PROBABILISTIC,
        subject=Subject.SMOOTHED, **({"evidence": evidence, "prediction": 1 if radius else ABSTAIN} | more),
    )  # fmt: skip


def kind(old: Row, new: Row) -> Kind:
    (change,) = compare(side(old), side(new)).changes
    return change.kind


# classes


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


# smoothing


def test_fisher_is_scipys() -> None:
    cases = [(a, n, b, n) for n in (1, 7, 100) for a in {0, n // 3, n} for b in {0, n // 2, n}]
    for a, n, b, m in [*cases, (984, 1000, 900, 1000), (99_000, 100_000, 98_800, 100_000)]:
        assert fisher(a, n, b, m) == pytest.approx(fisher_exact([[a, n - a], [b, m - b]]).pvalue, rel=1e-6)
    for a, n, b, m in [(3, 10, 40, 50), (40, 50, 3, 10), (0, 3, 5, 9), (500, 1000, 49, 100)]:
        tails = [fisher_exact([[a, n - a], [b, m - b]], alternative=tail).pvalue for tail in ("less", "greater")]
        assert fisher(a, n, b, m) == pytest.approx(min(1, 2 * min(tails)), rel=1e-9)


def test_holm() -> None:
    assert holm([0.04, 0.001, 0.02, 0.9], 0.05) == [False, True, False, False]
    assert holm([0.01, 0.001, 0.016, 0.9], 0.05) == [True, True, True, False]
    assert holm([], 0.05) == []


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


# policies


def policy(text: str, folder: Path) -> Policy:
    (folder / "policy.yaml").write_text(text)
    return load(folder / "policy.yaml")


def verdict(rules: Policy, *pairs: tuple[float, float], certifier: str = "crown") -> int:
    rows = [[row(pair[k], input=i, certifier=certifier) for i, pair in enumerate(pairs)] for k in (0, 1)]
    return compare(side(*rows[0]), side(*rows[1]), rules).exit_code


def test_defaults_fail_what_got_worse_and_warn_about_what_got_better() -> None:
    for old, new, code in [(0.5, 0.4, 1), (0.5, 0.0, 1), (0.5, 0.6, 0), (0.0, 0.6, 0), (0.5, math.nan, 3)]:
        assert verdict(Policy(), (old, new)) == code
    comparison = compare(side(row(0.5)), side(row(0.6)))
    assert [entry[1] for entry in comparison.over("warn")] == [Kind.TIGHTER]
    assert compare(side(row(0.5)), side(row(0.5), uncomputed=3)).exit_code == 5
    assert compare(side(row(0.5)), side(row(0.1), uncomputed=3)).exit_code == 5


def test_a_policy_counts_rows_by_how_much_they_changed(tmp_path: Path) -> None:
    rules = policy("classes: {looser: {more_than: 0.01, at_most: 1}, tighter: fail, lost: warn}\n", tmp_path)
    assert verdict(rules, (1, 0.995), (1, 0.995), (1, 0.995)) == 0
    assert verdict(rules, (1, 0.98), (1, 0.995)) == 0
    assert verdict(rules, (1, 0.98), (1, 0.98)) == 1
    assert verdict(rules, (1, 1.1)) == 1
    assert verdict(rules, (1, 0.0)) == 0


def test_patterns_have_terms_of_their_own(tmp_path: Path) -> None:
    text = """
tolerance: {absolute: 0, relative: 1e-6}
classes: {missing: warn}
certifiers:
  "milp*": {tolerance: {relative: 0.05}, classes: {lost: ignore}}
  "crown(steps=*": {classes: {looser: ignore}}
  "sdp": {}
"""
    rules = policy(text, tmp_path)
    assert rules.rest.tolerance == Tolerance(0.0, 1e-6)
    assert verdict(rules, (1, 0.97)) == 1
    assert verdict(rules, (1, 0.97), certifier="milp") == 0
    assert verdict(rules, (1, 0.9), certifier="milp") == 1
    assert verdict(rules, (1, 0.0), certifier="milp(seconds=3)") == 0
    assert verdict(rules, (1, 0.5), certifier="crown(steps=5)") == 0
    assert compare(side(row(1.0), row(1.0, input=1)), side(row(1.0)), rules).exit_code == 0
    assert [*compare(side(row(1.0)), side(row(1.0)), rules).unused] == ["milp*", "crown(steps=*", "sdp"]
    shadowed = policy('certifiers: {"*": {classes: {looser: warn}}, crown: {}, milp: {}}', tmp_path)
    comparison = compare(side(row(1.0)), side(row(0.5)), shadowed)
    assert comparison.unused == {"crown": True, "milp": False} and comparison.exit_code == 0
    assert "'crown' is never used" in SHAPES["text"](comparison)
    assert "'milp' fits no certifier" in SHAPES["text"](comparison)
    one = policy("significance: 1e-12", tmp_path)
    assert compare(side(counted([10, 984, 6], 0.5)), side(counted([60, 934, 6], 0.3, "1")), one).exit_code == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", ["line 1", "write a mapping"]),
        ("a: 1\nclasess: {}", ["line 1", "unknown key 'a'"]),
        ("\nclasess: {}", ["line 2", "did you mean 'classes'"]),
        ("classes:\n  loser: fail", ["line 2", "classes.loser", "did you mean 'looser'"]),
        ("classes:\n  looser: never", ["line 2", "fail, warn, ignore"]),
        ("classes: {looser: {more: 1}}", ["classes.looser.more", "more_than"]),
        ("classes: {lost: {more_than: 1}}", ["classes.lost.more_than", "at_most"]),
        ("classes: {looser: {at_most: 1.5}}", ["classes.looser.at_most", "whole number"]),
        ("classes: {looser: {more_than: much}}", ["classes.looser.more_than", "number"]),
        ("classes: {unsound: warn}", ["classes.unsound", "always fail"]),
        ("tolerance: {relative: -1}", ["tolerance.relative", "at least 0"]),
        ("tolerance: {relative: .inf}", ["tolerance.relative"]),
        ("tolerance: {relative: 1}", ["tolerance.relative", "below 1"]),
        ("classes: {looser: {more_than: 20}}", ["classes.looser.more_than", "0.05 is 5 %", "not 20"]),
        ("tolerance: {absolute: yes}", ["tolerance.absolute", "True"]),
        ("significance: 1", ["significance", "between 0 and 1"]),
        ("certifiers:\n  crown:\n    classes: {lost: no}", ["line 3", "certifiers.crown.classes.lost"]),
        ("certifiers: [crown]", ["certifiers", "mapping"]),
        ("timing: {ratio: 2}", ["timing.ratio", "at_most"]),
        ("lost: fail\nlost: warn", ["line 2", "given twice"]),
        ("{", ["not valid YAML"]),
    ],
)
def test_what_a_policy_cannot_mean_is_refused_by_file_line_and_key(text: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        policy(text, tmp_path)
    assert all(word in str(error.value) for word in ["policy.yaml", *words])


def test_what_the_documentation_shows_is_understood(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "ci.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    rules = policy(blocks[0], tmp_path)
    assert rules.rest.tolerance == Tolerance() and rules.of("milp(seconds=3)", "milp").rules[Kind.LOST].at_most == 2
    jobs = yaml.safe_load(blocks[1])["jobs"] | yaml.safe_load(blocks[2])
    assert {step["uses"].split("@")[0] for job in jobs.values() for step in job["steps"] if "uses" in step} == {
        "actions/checkout", "actions/setup-python", "actions/upload-artifact",
    }  # fmt: skip


# outputs


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> dict[str, Side]:
    """Sides in the place of files."""
    rows = [row(radius, input=i) for i, radius in enumerate((0.5, 0.5, 0.5, 0.5, 0.5, 0.0, 0.5))]
    news = [row(radius, input=i) for i, radius in enumerate((0.5, 0.50001, 0.4, 0.0, 0.6, 0.3, math.nan))]
    odd = row(0.25, certifier="x[1]|<b>_*", spec={"name": "x"})
    found = {"old": side(*rows, replace(odd, radius=0.5), name="old"), "new": side(*news, odd, name="new|<i>")}
    found["fine"] = side(*news[:1], name="fine")
    monkeypatch.setattr(baselines, "read", lambda path: found[str(path)])
    return found


def called(old: str, new: str, shape: str = "text", **options: Any) -> tuple[int, str]:
    comparison = compare(Path(old), Path(new), **options)
    return comparison.exit_code, shape_of(shape)(comparison)


def test_text_names_every_row_that_matters(sides: Mapping[str, Side]) -> None:
    code, text = called("old", "new")
    assert code == 3
    for line in (
        "net, crown, L2, input 2   0.5 -> 0.4 (-20.00 %)", "fail: 2 rows are looser; the policy allows 0",
        "warn: 1 rows are tighter; the policy allows 0", "fail: 1 rows are non-finite", "the radius is nan",
        "x[1]|<b>_*",
        "note: 1 rows moved by noise, by +0.002 % on average", "A radius is unsound, or not a number: do not use that",
    ):  # fmt: skip
        assert " ".join(line.split()) in " ".join(text.split())
    assert called("fine", "fine")[0] == 0


def test_markdown_is_escaped(sides: Mapping[str, Side]) -> None:
    code, text = called("old", "new", shape="markdown")
    assert code == 3 and "| net, x\\[1]\\|\\<b>\\_\\*, L2, input 0 |" in text
    tables = [block for block in text.split("\n\n") if block.startswith("| ")]
    assert all(
        len({line.replace("\\|", "").count("|") for line in block.strip().splitlines()}) == 1 for block in tables
    )


def test_json_and_junit_have_every_row(sides: Mapping[str, Side]) -> None:
    code, text = called("old", "new", shape="json")
    values = json.loads(text)
    assert code == values["exit_code"] == 3
    assert values["counts"] == {kind.value: 0 for kind in Kind} | {
        "same": 1, "noise": 1, "looser": 2, "lost": 1, "gained": 1, "tighter": 1, "non-finite": 1,
    }  # fmt: skip
    assert [change["new"] for change in values["changes"] if change["class"] == "non-finite"] == ["nan"]
    suite = ElementTree.fromstring(called("old", "new", shape="junit")[1].encode())
    assert suite.attrib == {"name": "certbench compare", "tests": "3", "failures": "2", "errors": "0"}
    messages = {case.get("name"): case.find("failure") for case in suite}
    failure = messages["crown L2"]
    assert (failure is not None and failure.get("message") == "1 non-finite, 1 looser, 1 lost") or failure is not None
    assert failure.text is not None and "input 3: 0.5 -> 0" in failure.text
    assert messages["both sides"] is None


def test_known_issues_do_not_fail(sides: Mapping[str, Side], tmp_path: Path) -> None:
    (tmp_path / "known.yaml").write_text(
        '- {certifier: crown, input: [2], kind: looser, reason: "slower search"}\n'
        '- {certifier: crown, input: 4, kind: lost, reason: "none any more"}\n'
    )
    code, text = called("old", "new", known=tmp_path / "known.yaml", shape="text")
    assert "fail: 1 rows are looser" in text and "slower search" in text and code == 3
    assert "known issue that is none any more: lost: certifier crown, input (4,)" in text


def test_what_is_said_of_known_issues_is_part_of_the_document(sides: Mapping[str, Side], tmp_path: Path) -> None:
    (tmp_path / "known.yaml").write_text(
        "- {certifier: crown, input: 4, kind: lost, reason: none any more}\n"
        "- {certifier: crwn, kind: lost, reason: typo}\n"
    )
    for shape in SHAPES:
        _, text = called("old", "new", known=tmp_path / "known.yaml", shape=shape)
        assert "known issue that is none any more: lost" in text.replace("\\_", "_")
        assert "known issue that matches no row: lost: certifier crwn" in text
        if shape == "json":
            json.loads(text)
        if shape == "junit":
            ElementTree.fromstring(text.encode())


def test_junit_is_xml_whatever_a_reason_holds() -> None:
    reason = "a\0\x1b[31mred\x0b<&>\ufffe"
    new = side(row(0.0, outcome=Outcome.FAILED, reason=reason, prediction=ABSTAIN))
    suite = ElementTree.fromstring(SHAPES["junit"](compare(side(row(0.5)), new)).encode())
    (failure,) = suite.iter("failure")
    assert failure.text is not None and "failed: a\ufffd\ufffd[31mred\ufffd<&>\ufffd" in failure.text


def test_what_cannot_be_compared_is_said(sides: dict[str, Side], tmp_path: Path) -> None:
    sides["empty"] = side(name="empty")
    for arguments, options in (
        (("old", "empty"), {}),
        (("old", "new"), {"shape": "xml"}),
        (("old", "new"), {"policy": tmp_path / "none.yaml"}),
    ):
        with pytest.raises(ConfigError):
            called(*arguments, **options)


def test_incomparable_and_incomplete_are_failures_of_the_whole() -> None:
    for new, words in ((side(row(0.5), data="e"), "cannot be compared"), (side(row(0.5), uncomputed=1), "incomplete")):
        comparison = compare(side(row(0.5)), new)
        assert words in SHAPES["junit"](comparison) and words in SHAPES["text"](comparison)


def test_a_change_has_a_size() -> None:
    sizes = [Change(Kind.SAME, row(old), row(new)).size for old, new in ((1, 0.9), (0, 1), (math.inf, 1), (1, 1))]
    assert sizes == [pytest.approx(-0.1), math.inf, -math.inf, 0.0]
    assert Comparison(side(), side(), Policy(), []).exit_code == 0


def test_nothing_heavy_is_imported() -> None:
    code = "import certbench.pytest_plugin, certbench.results.significance, sys\n"
    code += "from certbench.comparison import baseline, compare, output, policy, side, update\n"
    code += "assert not {'torch', 'numpy', 'scipy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
