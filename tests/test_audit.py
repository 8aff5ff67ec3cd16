"""The audit of a run: what over-claims is caught, what is sound is not, and other models are refused."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from rich.console import Console
from torch import Tensor, nn

from certbench import audit, audit_base, benchmark, registry, smoothed_attack, stored_run
from certbench.audit_output import UNREACHED
from certbench.certificate import Certificate
from certbench.certifier import Certifier, clean_margin
from certbench.classifier import Classifier
from certbench.errors import ConfigError
from certbench.store import Counterexample, Store
from certbench.suite import load
from certbench.terms import Guarantee
from certbench.threat import ThreatModel
from certbench.verifiers.integer_noise import IntegerGaussian
from certbench.verifiers.noise import Gaussian
from certbench.verifiers.smoothing import Smoothing, SmoothingState

from .test_benchmark import Watcher


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
        out = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
        code = audit.run(self.run_folder, out, **{"steps": 10, "seconds": 100, **options})
        return code, json.loads((self.run_folder / "audit.json").read_text()), out.export_text()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for kind in (Scaled, Overclaiming):
        monkeypatch.setitem(registry.table(), kind.__name__.lower(), f"{__name__}:{kind.__name__}")
    monkeypatch.setattr(audit_base, "ROUNDS", 2)
    return Bench(tmp_path)


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
    monkeypatch.setattr(audit_base, "BATCH", 4)
    search, calls = audit_base.search, []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return search(*args, **options)

    monkeypatch.setattr(audit_base, "search", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.audit()
    store = Store(bench.run_folder / "results.db")
    assert len(store.attacked()) == 16
    store.close()
    code, record, _ = bench.audit()
    assert (code, record["base"][0]["refuted"]) == (0, 0)
    assert not (bench.run_folder / "audit.json.part").exists()


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
    assert (code, record["base"]) == (0, [])
    assert {part["rows"] for part in record["not audited"]} == {10}


def test_a_certified_class_that_is_not_the_classifiers_is_unsound(bench: Bench) -> None:
    bench.run(scaled(0.5, shift=1))
    code, record, _ = bench.audit()
    assert code == 3
    assert len(record["another class"]) == 20
    assert record["refuted"] == []


def test_a_stored_counterexample_that_is_none_refutes_nothing(bench: Bench) -> None:
    bench.run(scaled(0.5), norms=[2])
    entries = stored_run.load(bench.run_folder).entries
    store = Store(bench.run_folder / "results.db")
    x = stored_run.load(bench.run_folder).inputs
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


def test_a_budget_that_is_spent_is_said_so(bench: Bench) -> None:
    bench.run(scaled(2.0), {"name": "smoothing", **SMOOTHING})
    code, record, _ = bench.audit(seconds=0)
    assert code == 5
    assert {part["reason"] for part in record["not audited"]} == {UNREACHED}


def test_inputs_and_certifiers_can_be_chosen(bench: Bench) -> None:
    bench.run(scaled(2.0), "lipschitz")
    code, record, _ = bench.audit(inputs=3, only="lipschitz", seconds=50)
    assert code == 0
    assert {(part["certifier"], part["rows"]) for part in record["base"]} == {("lipschitz", 3)}
    with pytest.raises(ConfigError, match="unknown certifier of this run 'crown'"):
        bench.audit(only="crown")


def test_no_run_no_audit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the folder of a run"):
        audit.run(tmp_path, Console())


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


def test_smoothing_without_predict_is_not_audited(bench: Bench) -> None:
    bench.run({"name": "soft-smoothing", "n": 100}, norms=[2])
    code, record, _ = bench.audit()
    assert (code, record["smoothed"]) == (0, [])
    assert "no PREDICT" in record["not audited"][0]["reason"]


def test_chance_is_a_binomial_or_markovs_bound() -> None:
    assert smoothed_attack.chance(100, 0, 0.01, False) == 1
    assert smoothed_attack.chance(1, 1, 0.01, False) == pytest.approx(0.01)
    assert smoothed_attack.chance(10, 2, 0.002, False) == pytest.approx(1.78e-4, rel=0.01)
    assert smoothed_attack.chance(10, 2, 0.002, True) == pytest.approx(0.01)


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
def test_points_that_attack_smoothing_lie_within_the_radius_and_are_worse(smoothing: Smoothing, p: float) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    classifier, threat = Classifier(module, (6,), 3), ThreatModel(p, (0.0, 1.0))
    x = (16 * torch.rand(5, 6, generator=torch.Generator().manual_seed(1))).round().double() / 16
    label = classifier(x).argmax(dim=1)
    eps = torch.tensor([0.13, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)
    points = smoothed_attack.perturb(smoothing, classifier, x, label, eps, threat, steps=10, draws=32)
    assert (torch.linalg.vector_norm(points - x, ord=p, dim=1) <= eps).all()
    assert points.min() >= 0 and points.max() <= 1
    margin = clean_margin(classifier(points), label) - clean_margin(classifier(x), label)
    assert (margin < 0).sum() >= 4
    answer = smoothed_attack.judge(smoothing, classifier, points, level=0.001, draws=500, seed=3)
    assert answer.shape == (5,)
