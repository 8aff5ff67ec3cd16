import math
import re
from pathlib import Path

import pytest
import yaml

from certbench import ConfigError
from certbench.comparison.classes import Kind, Tolerance
from certbench.comparison.compare import compare
from certbench.comparison.output import SHAPES
from certbench.comparison.policy import Policy, load
from tests.support.comparing import counted, row, side


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


def test_incomparable_and_incomplete_are_failures_of_the_whole() -> None:
    for new, words in ((side(row(0.5), data="e"), "cannot be compared"), (side(row(0.5), uncomputed=1), "incomplete")):
        comparison = compare(side(row(0.5)), new)
        assert words in SHAPES["junit"](comparison) and words in SHAPES["text"](comparison)
