"""The audit of a run: what over-claims is caught, what is sound is not, and other models are refused."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from certbench.auditing import audit, base_classifiers
from certbench.auditing.result import UNREACHED
from certbench.errors import ConfigError
from certbench.results.store import Counterexample, Store
from certbench.runs import reopen
from certbench.runs.work import Certifying
from tests.support.audits import SMOOTHING, Bench, Scaled, change, of, scaled

pytestmark = pytest.mark.machine


def test_a_radius_of_twice_the_truth_is_refuted_and_the_truth_is_not(bench: Bench) -> None:
    bench.run(scaled(2.0), scaled(1.0), norms=[1, 2, "inf"])
    code, record, text = bench.audit()
    assert code == 3
    assert record["unsound"]
    by_factor = {(part["certifier"], part["norm"]): part for part in record["base"]}
    for norm in (1.0, 2.0, "inf"):
        assert by_factor["scaled(factor=2)", norm]["refuted"] == 10  # also the misclassified one
        exact = by_factor["scaled", norm]
        assert exact["refuted"] == 0
        assert 0.97 < exact["radius / upper"]["median"] <= 1 + 1e-9
    assert len(record["refuted"]) == 30
    assert "UNSOUND: scaled(factor=2) on plane" in text


def test_what_was_found_is_stored_with_the_run_and_a_second_audit_begins_there(bench: Bench) -> None:
    bench.run(scaled(0.5))
    code, first, _ = bench.audit()
    assert code == 0
    assert first["closer"] >= 20
    store = Store(bench.run_folder / "results.db")
    uppers = [row.upper for row in store.rows()]
    store.close()
    assert all(math.isfinite(upper) for upper in uppers)
    code, second, _ = bench.audit(seed=5)
    store = Store(bench.run_folder / "results.db")
    assert all(new.upper <= old for new, old in zip(store.rows(), uppers, strict=True))
    store.close()
    assert (code, second["stored counterexamples that are none"]) == (0, [])
    bench.run(scaled(0.5))  # the run goes on from there, and computes nothing
    assert bench.audit(seed=5)[1]["closer"] == 0


def test_an_audit_that_was_interrupted_keeps_what_it_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run(scaled(0.5))
    monkeypatch.setattr(base_classifiers, "BATCH", 4)
    search, calls = base_classifiers.attack_with_all, []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return search(*args, **options)

    monkeypatch.setattr(base_classifiers, "attack_with_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.audit()
    store = Store(bench.run_folder / "results.db")
    assert len(store.attacked()) == 16
    store.close()
    code, record, _ = bench.audit()
    assert (code, record["base"][0]["refuted"]) == (0, 0)
    assert {path.name for path in bench.run_folder.iterdir()} == {"audit.json", "manifest.json", "results.db"}


def test_another_model_is_refused(bench: Bench) -> None:
    bench.run(scaled(1.0))
    bench.weights(1.1 * bench.weight)
    with pytest.raises(ConfigError, match="model 'plane' is not the one of this run"):
        bench.audit()
    manifest = bench.run_folder / "manifest.json"
    values = json.loads(manifest.read_text())
    bench.run(scaled(1.0), data=values["suite"]["data"], attacks={"steps": 1}, inputs=9)
    values["models"] = json.loads(manifest.read_text())["models"]
    bench.weights(bench.weight)
    bench.run(scaled(1.0))
    bench.weights(1.1 * bench.weight)
    manifest.write_text(json.dumps(values))  # a manifest that agrees with the weights: the keys do not
    with pytest.raises(ConfigError, match="by their keys"):
        bench.audit()


def test_other_data_are_refused(bench: Bench) -> None:
    bench.run(scaled(1.0))
    np.savez(bench.folder / "points.npz", inputs=np.zeros((10, 6), np.float32), labels=np.zeros(10, np.int64))
    with pytest.raises(ConfigError, match="data"):
        bench.audit()


def test_a_row_of_another_key_is_not_audited_and_said_to_be(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scaled, "version", 99)
    bench.run(scaled(2.0))
    monkeypatch.setattr(Scaled, "version", 1)
    code, record, _ = bench.audit()
    assert (code, record["base"]) == (5, [])
    assert {part["rows"] for part in record["not audited"]} == {10}


def test_a_certified_class_that_is_not_the_classifiers_is_unsound(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:  # a release that did not check what came in
        earlier.setattr(Certifying, "check", lambda *arguments: None)
        bench.run(scaled(0.5, shift=1))
    code, record, _ = bench.audit()
    assert code == 3
    assert len(record["another class"]) == 20
    assert record["refuted"] == []


def test_a_stored_counterexample_that_is_none_refutes_nothing(bench: Bench) -> None:
    bench.run(scaled(0.5), norms=[2])
    entries = reopen.reopen(bench.run_folder).entries
    store = Store(bench.run_folder / "results.db")
    x = reopen.reopen(bench.run_folder).inputs
    store.put_attacks([Counterexample(entries[1].attack, 1e-6, "a lie", (x[1] + 1e-7).numpy().tobytes())])
    store.close()
    code, record, _ = bench.audit()
    assert (code, record["refuted"]) == (5, [])
    assert record["stored counterexamples that are none"] == [{"model": "plane", "norm": 2.0, "input": 1}]


def test_a_complete_certifiers_answer_refutes_without_an_attack(bench: Bench) -> None:
    bench.run(scaled(1.5), "branch-and-bound", norms=[2])
    code, record, text = bench.audit(seconds=0)
    assert code == 3
    crossed = record["cross-audit"]
    assert len(crossed) == 10 and all(part["unsound"] for part in crossed)
    assert {(part["certifier"], part["other"]["certifier"]) for part in crossed} == {
        ("scaled(factor=1.5)", "branch-and-bound")
    }
    assert "UNSOUND: plane, L2, input 0: scaled(factor=1.5)" in text
    assert bench.audit(seconds=0, only="branch-and-bound")[0] == 3


def test_rounding_is_audited_where_it_is_asked_for(bench: Bench) -> None:
    bench.run("crown", "masked-product", "smoothing", norms=[2])
    code, record, text = bench.audit(floats=True)
    assert code == 0
    crown, masked = record["float audit"]
    assert crown["certifier"] == "crown" and crown["inputs"] == 10 and crown["bounds"] == 20
    assert crown["living"] == 0 and 0 < crown["exceed"] < 20
    assert "no float audit of masked-product on plane, L2: its norms are proved in float64 alone" in text
    assert "reason" in masked
    assert bench.audit()[1]["float audit"] == []


def test_a_row_that_misnames_its_guarantee_is_not_audited(bench: Bench) -> None:
    bench.run(scaled(2.0), norms=[2])
    change(bench, "UPDATE plan SET subject = 'smoothed', guarantee = 'probabilistic'")
    assert bench.audit()[0] == 5


def test_rows_that_are_missing_are_said_to_be(bench: Bench) -> None:
    bench.run(scaled(0.5), "lipschitz", norms=[2])
    change(bench, f"DELETE FROM results {of('lipschitz')}")
    code, record, text = bench.audit()
    assert (code, record["missing"]) == (5, 10)
    assert "missing: 10 rows of this run have not been computed yet" in text
    change(bench, "DELETE FROM results")
    with pytest.raises(ConfigError, match="none of the rows"):
        bench.audit()


@pytest.mark.parametrize("statement", ["distance = 1e-4", "distance = 1e-4, point = NULL"])
def test_a_distance_that_no_point_bears_out_accuses_nobody(bench: Bench, statement: str) -> None:
    bench.run(scaled(0.5), "crown", norms=[2, "inf"])
    bench.audit()
    change(bench, f"UPDATE attacks SET {statement} WHERE point IS NOT NULL")
    code, record, text = bench.audit()
    assert (code, record["refuted"], record["cross-audit"]) == (5, [], [])
    assert len(record["stored counterexamples that are none"]) == 20
    assert "unconfirmed: 20 stored counterexamples" in text
    assert bench.audit(only="crown", inputs=2)[1]["cross-audit"] == []


def test_a_budget_that_is_spent_is_said_so(bench: Bench) -> None:
    bench.run(scaled(2.0), {"name": "smoothing", **SMOOTHING})
    code, record, _ = bench.audit(seconds=0)
    assert code == 5
    assert {part["reason"] for part in record["not audited"]} == {UNREACHED}


def test_a_budget_ends_between_attacks_and_leaves_some_to_smoothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run(scaled(0.5), {"name": "smoothing", **SMOOTHING}, norms=[2])
    search = base_classifiers.attack_with_all

    def slow(*args: Any, **options: Any) -> Any:
        while time.monotonic() <= options["deadline"]:
            time.sleep(0.01)
        return search(*args, **options)

    monkeypatch.setattr(base_classifiers, "attack_with_all", slow)
    start = time.monotonic()
    code, record, _ = bench.audit(seconds=4)
    assert time.monotonic() - start < 8
    assert code == 5
    assert {part["certifier"] for part in record["not audited"]} == {"scaled(factor=0.5)"}
    assert record["smoothed"][0]["tested"] > 0


def test_inputs_and_certifiers_can_be_chosen(bench: Bench) -> None:
    bench.run(scaled(2.0), "lipschitz")
    code, record, _ = bench.audit(inputs=3, only="lipschitz", seconds=50)
    assert code == 0
    assert {(part["certifier"], part["rows"]) for part in record["base"]} == {("lipschitz", 3)}
    with pytest.raises(ConfigError, match="unknown certifier of this run 'crown'"):
        bench.audit(only="crown")


def test_no_run_no_audit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the folder of a run"):
        audit.audit(tmp_path)
