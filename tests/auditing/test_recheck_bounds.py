"""Bounds of margins, computed once more."""

from typing import Any

import pytest

from certbench.auditing import audit
from certbench.verifiers.lipschitz.margin import LayerwiseLipschitz
from tests.support.audits import Bench, change, of

pytestmark = pytest.mark.machine


def test_a_radius_that_its_own_bounds_do_not_prove_is_unsound(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run("ibp", "crown", {"name": "lipschitz", "rule": "naive"}, "best-of", norms=[2])
    code, record, _ = bench.audit()
    assert (code, record["not proved"], record["not proved again"]) == (0, [], [])
    assert [part["proved"] for part in record["bounds"]] == [10, 10, 10, 10]
    change(bench, f"UPDATE results SET radius = 1.002 * radius {of('lipschitz', 'input < 2')}")
    code, record, text = bench.audit()
    assert (code, record["refuted"], record["unsound"]) == (3, [], True)
    assert [part["input"] for part in record["not proved"]] == [0, 1]
    assert "UNSOUND: lipschitz(rule=naive) on plane, L2, input 0: its bounds do not prove the radius" in text
    monkeypatch.setattr(LayerwiseLipschitz, "repeatable", False)
    code, record, text = bench.audit()
    assert (code, record["not proved"]) == (5, [])
    assert [part["input"] for part in record["not proved again"]] == [0, 1]
    assert "not proved again: lipschitz(rule=naive) on plane, L2, input 0" in text


def test_bounds_that_fail_are_a_reason_and_no_verdict(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("shapes")

    bench.run("crown", norms=[2])
    monkeypatch.setattr(audit, "rebound", broken)
    monkeypatch.setattr(audit, "float_audit", broken)
    code, record, text = bench.audit(floats=True)
    assert code == 5
    assert record["attacks that failed"] == {"bounds of crown on plane, L2": "RuntimeError: shapes"}
    assert record["float audit"][0]["reason"] == "RuntimeError: shapes"
    assert "no float audit of crown on plane, L2: RuntimeError: shapes" in text


def test_bounds_of_another_version_are_not_computed_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run({"name": "lipschitz", "rule": "naive"}, norms=[2])
    change(bench, f"UPDATE results SET radius = 1.002 * radius {of('lipschitz', 'input < 2')}")
    monkeypatch.setattr(LayerwiseLipschitz, "version", LayerwiseLipschitz.version + 1)
    code, record, text = bench.audit()
    assert (code, record["not proved"]) == (0, [])
    assert "another version of the certifier" in record["bounds"][0]["reason"]
    assert "bounds of lipschitz(rule=naive) on plane, L2, not computed again" in text
