"""How many refutations of smoothed certificates chance explains."""

import pytest

from certbench.auditing.result import Audit
from certbench.auditing.smoothed_test import Test, chance, pooled
from tests.support.audits import SMOOTHING, Bench, change, of

pytestmark = pytest.mark.machine


def test_smoothing_that_overclaims_is_unsound_and_smoothing_is_not(bench: Bench) -> None:
    bench.run({"name": "overclaiming", **SMOOTHING}, {"name": "smoothing", **SMOOTHING}, norms=[2])
    code, record, text = bench.audit()
    assert code == 3
    broken, right = record["smoothed"]
    assert (broken["unsound"], right["unsound"]) == (True, False)
    assert broken["refuted"] >= broken["tested"] / 2
    assert broken["p_value"] < 1e-6
    assert right["refuted"] == 0
    assert right["expected"] == pytest.approx(10 * 0.01 + right["tested"] * 0.001)
    assert "UNSOUND: overclaiming" in text
    assert (right["tried"], right["tested"] <= 10) == (10, True)
    assert len(record["smoothed refutations"]) == broken["refuted"]
    assert bench.audit(only="smoothing")[0] == 0


@pytest.mark.parametrize(
    ("change_", "law"),
    [
        ("radius = 9e999", "samples prove no infinite radius"),
        ("prediction = -1", "an abstention certifies no radius"),
    ],
)
def test_a_smoothed_radius_that_is_none_is_unsound(bench: Bench, change_: str, law: str) -> None:
    bench.run({"name": "soft-smoothing", "n": 1000}, {"name": "smoothing", **SMOOTHING}, norms=[2])
    change(bench, f"UPDATE results SET {change_} {of('soft', 'input = 1')} AND radius > 0")
    code, record, _ = bench.audit()
    assert (code, [part["law"] for part in record["cross-audit"]]) == (3, [law])


def test_a_smoothed_radius_is_held_against_its_own_counts(bench: Bench) -> None:
    bench.run({"name": "smoothing", **SMOOTHING}, norms=[2])
    code, record, _ = bench.audit()
    assert (code, record["counts"]) == (0, [])
    change(bench, f"UPDATE results SET radius = 1.01 * radius {of('smoothing', 'input = 1')} AND radius > 0")
    code, record, text = bench.audit(seconds=0)
    assert (code, [part["input"] for part in record["counts"]]) == (3, [1])
    assert "UNSOUND: smoothing" in text and "its counts do not prove it" in text


def test_smoothing_without_predict_is_not_audited(bench: Bench) -> None:
    bench.run({"name": "soft-smoothing", "n": 100}, norms=[2])
    code, record, _ = bench.audit()
    assert (code, record["smoothed"]) == (0, [])
    assert "no PREDICT" in record["not audited"][0]["reason"]


def test_chance_is_a_binomial_or_markovs_bound() -> None:
    assert chance(100, 0, 0.01, False) == 1
    assert chance(1, 1, 0.01, False) == pytest.approx(0.01)
    assert chance(10, 2, 0.002, False) == pytest.approx(1.78e-4, rel=0.01)
    assert chance(10, 2, 0.002, True) == pytest.approx(0.01)


def test_refutations_of_several_tests_are_counted_together_by_input() -> None:
    def test(hits: set[int], shared: bool = False) -> Test:
        value = chance(2, len(hits), 0.002, shared)
        return Test(*(2, 2, len(hits), 0, 0.001, 0.001, value, shared), frozenset({0, 1}), frozenset(hits))

    def unsound(*tests: Test) -> bool:
        return Audit(tests={("m", "s", float(i)): test for i, test in enumerate(tests)}).unsound

    assert not unsound(test({0}), test({0}), test({0}), test({0}))  # one input, whose draws are the same in each
    assert unsound(test({0}), test({0}), test({1}), test({1}))
    assert not unsound(test(set()), test({1}), test(set()), test({0}, True))
    assert not unsound(*(test({0, 1}, True) for _ in range(4)))  # what shares draws fails together
    assert pooled([test({0}), test({1})]) == pytest.approx(2 * 0.004**2)
    assert pooled([]) == 1
    quiet = Audit(tests={("m", "s", 2.0): test({0}), ("m", "s", 1.0): test({1})})
    assert quiet.inconsistent == [] and quiet.exit_code == 3
