"""The audit of a run: what over-claims is caught, what is sound is not, and other models are refused."""

import json
import math
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from certbench.auditing import audit, base_classifiers, smoothed_classifiers
from certbench.auditing.output import told
from certbench.auditing.result import UNREACHED, Audit
from certbench.auditing.smoothed_test import Test, chance, pooled
from certbench.core import registry
from certbench.core.certificate import Certificate
from certbench.core.certifier import Certifier
from certbench.core.claims import Guarantee
from certbench.core.classifier import Classifier
from certbench.core.margins import clean_margin
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError
from certbench.results.store import Counterexample, Store
from certbench.runs import reopen
from certbench.runs import run as benchmark
from certbench.runs.suite import load
from certbench.verifiers.lipschitz.margin import LayerwiseLipschitz
from certbench.verifiers.smoothing.noise.families import Gaussian
from certbench.verifiers.smoothing.noise.integer import IntegerGaussian
from certbench.verifiers.smoothing.smoothing import Smoothing, SmoothingState
from tests.support.runs import Watcher
from tests.support.terminal import text_of

pytestmark = pytest.mark.machine


class Linear(nn.Sequential):
    """Three classes of six numbers."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 3))


def make() -> nn.Module:
    return Linear()


@dataclass(frozen=True)
class Scaled(Certifier[Classifier]):
    """A multiple of the exact radius of a linear classifier."""

    factor: float = 1.0
    shift: int = 0

    guarantee = Guarantee.SOUND
    norms = frozenset({1.0, 2.0, math.inf})

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> tuple[Classifier, ThreatModel]:
        return classifier.double(), threat

    def certify(self, state: tuple[Classifier, ThreatModel], x: Tensor, seeds: Sequence[int]) -> Certificate:
        exact, threat = state
        linear: Any = exact.module[0]  # type: ignore[index]
        logits = exact(x)
        top = logits.argmax(dim=1)
        gap = logits.gather(1, top[:, None]) - logits
        length = torch.linalg.vector_norm(linear.weight[top][:, None] - linear.weight, ord=threat.q, dim=-1)
        radius = (gap / length).nan_to_num(math.inf).amin(dim=1)
        return Certificate.of((top + self.shift) % 3, self.factor * radius * (1 - 1e-9))


@dataclass(frozen=True)
class Overclaiming(Smoothing):
    """Smoothing without confidence, and twice the radius."""

    def certify(self, state: SmoothingState, x: Tensor, seeds: Sequence[int]) -> Certificate:
        found = super().certify(state, x, seeds)
        return replace(found, radius=2 * found.radius)


SMOOTHING = {"n": 1000, "alpha": 0.01, "noise": {"name": "gaussian", "sigma": 0.5}}


class Bench:
    """A suite on a linear classifier, its run and its audit."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run_folder = folder, folder / "run"
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(10, 6, generator=generator)
        self.weight = torch.randn(3, 6, generator=generator)
        self.weights(self.weight)
        labels = (x @ self.weight.T).argmax(dim=1)
        labels[0] = (labels[0] + 1) % 3  # a mistake is certified, too
        np.savez(folder / "points.npz", inputs=x.numpy(), labels=labels.numpy())

    def weights(self, weight: Tensor) -> None:
        safetensors.torch.save_file({"0.weight": weight, "0.bias": torch.zeros(3)}, self.folder / "w.safetensors")

    def run(self, *certifiers: Any, **changes: Any) -> None:
        suite = {
            "name": "little",
            "data": str(self.folder / "points.npz"),
            "inputs": 10,
            "models": [{"name": "plane", "factory": f"{__name__}:make", "weights": str(self.folder / "w.safetensors")}],
            "norms": [2, "inf"],
            "certifiers": list(certifiers),
            "attacks": {"steps": 0},
        }
        path = self.folder / "little.yaml"
        path.write_text(json.dumps({**suite, **changes}), encoding="utf-8")
        benchmark.run(load(str(path)), self.run_folder, Watcher())

    def audit(self, **options: Any) -> tuple[int, dict[str, Any], str]:
        found = audit.audit(self.run_folder, **{"steps": 10, "seconds": 100, **options})
        return found.exit_code, json.loads(found.file.read_text()), text_of(told(found))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for kind in (Scaled, Overclaiming):
        monkeypatch.setitem(registry.table(), kind.__name__.lower(), f"{__name__}:{kind.__name__}")
    monkeypatch.setattr(base_classifiers, "ROUNDS", 2)
    return Bench(tmp_path)


def change(bench: Bench, *statements: str) -> None:
    """Change what is stored, as nobody should."""
    with closing(sqlite3.connect(bench.run_folder / "results.db", isolation_level=None)) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount, statement


def of(certifier: str, more: str = "1") -> str:
    return f"WHERE key IN (SELECT key FROM plan WHERE certifier LIKE '{certifier}%' AND {more})"


def scaled(factor: float, **options: Any) -> dict[str, Any]:
    return {"name": "scaled", "factor": factor, **options}


# base classifiers


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


def test_a_certified_class_that_is_not_the_classifiers_is_unsound(bench: Bench) -> None:
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


# smoothed classifiers


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
        ("radius = -9", "a radius is a number, at least 0"),
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


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize(
    "smoothing",
    [
        Smoothing(Gaussian(0.25)),
        Smoothing(Gaussian(0.25), layer="0"),
        Smoothing(Gaussian(0.25), share=3),
        Smoothing(IntegerGaussian(0.25, grid=16)),
    ],
    ids=["input", "layer", "shared", "integer"],
)
@pytest.mark.parametrize("plane", [False, True])
def test_points_that_attack_smoothing_lie_within_the_radius_and_are_worse(
    smoothing: Smoothing, p: float, plane: bool
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    if plane:  # one coordinate decides, so that every attack must go the same way
        module = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)).eval()
        with torch.no_grad():
            for layer in module:
                layer.weight.zero_()  # type: ignore[operator, union-attr]
                layer.bias.zero_()  # type: ignore[operator, union-attr]
            module[0].weight[0, 0] = module[1].weight[1, 0] = 1.0  # type: ignore[index, operator]
            module[1].bias.copy_(torch.tensor([0.5, 0.0, -9.0]))  # type: ignore[operator, union-attr]
    classifier, threat = Classifier(module, (6,), 3), ThreatModel(p, (0.0, 1.0))
    x = (16 * torch.rand(5, 6, generator=torch.Generator().manual_seed(1))).round().double() / 16
    label = classifier(x).argmax(dim=1)
    eps = torch.tensor([0.13, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)
    smoothed = smoothing.smoothed(classifier, threat)
    points = smoothed_classifiers.perturb(smoothed, x, label, eps, threat, steps=10, draws=32)
    assert (torch.linalg.vector_norm(points - x, ord=p, dim=1) <= eps).all()
    assert points.min() >= 0 and points.max() <= 1
    margin = clean_margin(classifier(points), label) - clean_margin(classifier(x), label)
    assert (margin < 0).all() or not plane
    answer = smoothed.predict(points, level=0.001, draws=500, seed=3)
    assert answer.shape == (5,)
