"""Runs: nothing is computed twice, nothing is lost, and no failure stops the others."""

import json
import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from certbench.attacks import battery
from certbench.core import registry
from certbench.core.certificate import Certificate
from certbench.core.certifier import Certifier
from certbench.core.claims import Guarantee, Outcome, Subject
from certbench.core.classifier import Classifier
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError, MissingBackendError, SolverError, StoreError, UnsupportedError
from certbench.files.writing import draft
from certbench.results.rows import Row
from certbench.runs import run as benchmark
from certbench.runs import stages
from certbench.runs.events import Interrupted
from certbench.runs.run import Finished
from certbench.runs.suite import load

pytestmark = pytest.mark.machine

CALLS: list[str] = []
"""What the fakes were asked, in order."""

Mishap = Callable[[], object]


def raises(error: BaseException) -> Mishap:
    def mishap() -> None:
        raise error

    return mishap


MISHAPS: dict[str, Mishap] = {
    "nothing": lambda: None,
    "solver": raises(SolverError("no answer")),
    "unsupported": raises(UnsupportedError("no bound for layer 7")),
    "backend": raises(MissingBackendError("install it by: pip install x")),
    "config": raises(ConfigError("this cannot be")),
    "memory": raises(MemoryError("too much")),
    "cpu memory": raises(RuntimeError("DefaultCPUAllocator: can't allocate memory")),
    "bug": raises(TypeError("None is not callable")),
    "interrupt": raises(KeyboardInterrupt()),
    "slow": lambda: time.sleep(0.2),
}


@dataclass(frozen=True)
class Fake(Certifier[Classifier]):
    """A certifier with an accident; claims `radius` everywhere."""

    prepares: str = "nothing"
    certifies: str = "nothing"
    radius: float = 1e-9

    guarantee = Guarantee.SOUND
    norms = frozenset({2.0})

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> Classifier:
        CALLS.append("prepare")
        MISHAPS[self.prepares]()
        return classifier

    def certify(self, state: Classifier, x: Tensor, seeds: Sequence[int]) -> Certificate:
        CALLS.append(f"certify {len(x)}")
        MISHAPS[self.certifies]()
        return Certificate.of(state(x).argmax(dim=1), torch.full((len(x),), self.radius, dtype=torch.float64))


@dataclass(frozen=True)
class Unwritable(Fake):
    """Its evidence is no JSON."""

    def certify(self, state: Classifier, x: Tensor, seeds: Sequence[int]) -> Certificate:
        return Certificate.of(state(x).argmax(dim=1), torch.zeros(len(x)), evidence=[{"object": self}] * len(x))


class Linear(nn.Sequential):
    """Three classes of the plane."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(2, 3))


def make() -> nn.Module:
    return Linear()


class Watcher:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.counts: Counter[str] = Counter()
        self.notes: list[str] = []
        self.steps: list[str] = []

    def begin(self, total: int, done: int) -> None:
        self.total, self.done = total, done

    def now(self, text: str) -> None:
        self.steps.append(text)

    def advance(self, outcomes: Mapping[str, int]) -> None:
        self.counts.update(outcomes)

    def note(self, text: str) -> None:
        self.notes.append(text)


POINTS = np.array([[1.0, 0.1], [0.1, 1.0], [-1.0, -1.0]], dtype=np.float32)


class Bench:
    """A little suite in a folder of its own, and its run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.watcher = Watcher()
        np.savez(folder / "plane.npz", inputs=POINTS, labels=np.arange(3))
        self.weights([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])

    def weights(self, matrix: list[list[float]]) -> None:
        state = {"0.weight": torch.tensor(matrix), "0.bias": torch.zeros(3)}
        safetensors.torch.save_file(state, self.folder / "linear.safetensors")

    def run(
        self, *certifiers: Any, rerun: str = "errors", model: str = "plane", executor: str = "inline", **changes: Any
    ) -> Finished:
        suite = {
            "name": "little",
            "data": str(self.folder / "plane.npz"),
            "inputs": 3,
            "models": [
                {"name": model, "factory": f"{__name__}:make", "weights": str(self.folder / "linear.safetensors")}
            ],
            "norms": [2],
            "certifiers": list(certifiers),
            "attacks": {"steps": 0},
        }
        path = self.folder / "little.yaml"
        path.write_text(json.dumps({**suite, **changes}), encoding="utf-8")
        self.watcher = Watcher()
        CALLS.clear()
        return benchmark.run(load(str(path)), self.folder / "run", self.watcher, rerun=rerun, executor=executor)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for kind in (Fake, Unwritable):
        monkeypatch.setitem(registry.table(), kind.__name__.lower(), f"{__name__}:{kind.__name__}")
    return Bench(tmp_path)


def fake(**options: Any) -> dict[str, Any]:
    return {"name": "fake", **options}


def outcomes(rows: list[Row]) -> dict[str, set[Outcome]]:
    found: dict[str, set[Outcome]] = {}
    for row in rows:
        found.setdefault(row.certifier, set()).add(row.outcome)
    return found


SMOOTHING = {"name": "smoothing", "n": 100}


# nothing is computed twice


def test_a_second_run_computes_nothing(bench: Bench) -> None:
    first = bench.run("lipschitz", SMOOTHING, "fake", norms=[1, 2, "inf"], attacks={"steps": 3})
    assert first.computed == bench.watcher.total == 3 * 3 * 3 + 3
    assert sum(bench.watcher.counts.values()) == first.computed
    second = bench.run("lipschitz", SMOOTHING, "fake", norms=[1, 2, "inf"], attacks={"steps": 3})
    assert second.computed == 0
    assert second.rows == first.rows
    assert (CALLS, bench.watcher.steps) == ([], [])  # not even prepared
    assert bench.watcher.done == bench.watcher.total
    assert "finished" in json.loads((second.folder / "manifest.json").read_text())


def test_a_changed_option_computes_what_it_concerns(bench: Bench) -> None:
    bench.run("lipschitz", fake())
    assert bench.run("lipschitz", fake(radius=1e-8)).computed == 3
    assert CALLS == ["prepare", "certify 3"]
    assert bench.run("lipschitz", fake()).computed == 0  # the old answers are still there


def test_changed_weights_compute_everything_again(bench: Bench) -> None:
    old = bench.run("lipschitz", attacks={"steps": 3}).rows
    bench.weights([[2.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    changed = bench.run("lipschitz", attacks={"steps": 3})
    assert changed.computed == 6
    assert [row.radius for row in changed.rows] != [row.radius for row in old]


PLANE = """
from torch import nn

class Plane(nn.Sequential):
    def __init__(self): super().__init__(nn.Linear(2, 3))
"""
TIDY = PLANE.replace("__init__(self): super()", "__init__(self):\n        # Three classes.\n        super()")


def test_a_module_that_moved_and_was_reformatted_finds_its_rows_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(bench.folder)
    (bench.folder / "package").mkdir()
    for name, text in {"old_place": PLANE, "package/new_place": TIDY, "changed": TIDY + "    sign = -1\n"}.items():
        (bench.folder / f"{name}.py").write_text(text, encoding="utf-8")

    def run(module: str) -> int:
        model = {"name": "plane", "factory": f"{module}:Plane", "weights": str(bench.folder / "linear.safetensors")}
        return bench.run("fake", "lipschitz", models=[model], attacks={"steps": 3}).computed

    assert run("old_place") == 9
    assert run("package.new_place") == 0
    assert run("changed") == 9


def test_names_are_no_content(bench: Bench) -> None:
    bench.run("fake", SMOOTHING)
    renamed = bench.run("fake", SMOOTHING, model="another", name="other")
    assert renamed.computed == 0
    assert {row.model for row in renamed.rows} == {"another"}


@pytest.mark.parametrize(("change", "computed"), [({"seed": 1}, 3), ({"batch": 1}, 0), ({"domain": [-1, 1]}, 3)])
def test_settings_that_change_answers_change_keys(bench: Bench, change: dict[str, Any], computed: int) -> None:
    bench.run("fake")
    assert bench.run("fake", **change).computed == computed


def test_more_inputs_compute_only_the_new_ones(bench: Bench) -> None:
    bench.run("fake", inputs=2)
    assert bench.run("fake", inputs=3).computed == 1


def test_batches_are_as_large_as_the_suite_says(bench: Bench) -> None:
    bench.run("fake", batch=2)
    assert CALLS == ["prepare", "certify 2", "certify 1"]


def test_two_models_share_a_run(bench: Bench) -> None:
    models = [
        {"name": name, "factory": f"{__name__}:make", "weights": str(bench.folder / f"{name}.safetensors")}
        for name in ("one", "other")
    ]
    for i, model in enumerate(models):
        bench.weights([[1.0 + i, 0.0], [0.0, 1.0], [-1.0, -1.0]])
        (bench.folder / "linear.safetensors").rename(model["weights"])
    rows = bench.run("lipschitz", models=models).rows
    assert [row.model for row in rows] == ["one"] * 3 + ["other"] * 3


# failures


FAILURES = [
    ("prepares", "solver", Outcome.FAILED, "no answer"),
    ("certifies", "solver", Outcome.FAILED, "SolverError: no answer"),
    ("prepares", "unsupported", Outcome.UNSUPPORTED, "no bound for layer 7"),
    ("prepares", "backend", Outcome.FAILED, "install it by: pip install x"),
    ("prepares", "config", Outcome.FAILED, "this cannot be"),
    ("prepares", "memory", Outcome.OUT_OF_MEMORY, "too much"),
    ("prepares", "cpu memory", Outcome.OUT_OF_MEMORY, "can't allocate memory"),
    ("certifies", "memory", Outcome.OUT_OF_MEMORY, "batch size 1: too much"),
    ("certifies", "cpu memory", Outcome.OUT_OF_MEMORY, "can't allocate memory"),
    ("prepares", "bug", Outcome.FAILED, "TypeError: None is not callable (a bug"),
    ("certifies", "bug", Outcome.FAILED, "TypeError: None is not callable (a bug"),
]


@pytest.mark.parametrize(("where", "mishap", "outcome", "reason"), FAILURES)
def test_a_failure_becomes_rows_with_its_reason_and_stops_nobody(
    bench: Bench, where: str, mishap: str, outcome: Outcome, reason: str
) -> None:
    finished = bench.run("lipschitz", fake(**{where: mishap}), fake())
    rows = [row for row in finished.rows if mishap in row.certifier]
    assert outcomes(finished.rows) == {
        "lipschitz": {Outcome.COMPLETED}, f"fake({where}={mishap})": {outcome}, "fake": {Outcome.COMPLETED},
    }  # fmt: skip
    assert all(reason in row.reason and row.radius == 0 for row in rows)
    assert (finished.folder / "errors.log").exists() == (mishap == "bug")
    assert finished.computed == 9


def test_the_traceback_of_a_bug_is_kept(bench: Bench) -> None:
    finished = bench.run(fake(prepares="bug"))
    assert "fake(prepares=bug) on plane, L2\nTraceback" in (finished.folder / "errors.log").read_text()
    assert bench.watcher.notes


def test_evidence_that_is_no_json_is_a_failure(bench: Bench) -> None:
    assert outcomes(bench.run("unwritable", "fake").rows) == {
        "unwritable": {Outcome.FAILED}, "fake": {Outcome.COMPLETED},
    }  # fmt: skip


def test_a_norm_that_is_not_offered_is_a_row(bench: Bench) -> None:
    rows = bench.run("fake", "lipschitz", norms=["inf"]).rows
    assert {row.reason for row in rows if row.certifier == "fake"} == {"Linf is not offered, only L2"}
    assert CALLS == []


@pytest.mark.parametrize(
    ("kinds", "again"),
    [
        ("errors", {"solver", "memory"}),
        ("timeouts", {"solver", "memory", "slow"}),
        ("unsupported", {"solver", "memory", "unsupported"}),
        ("all", {"solver", "memory", "slow", "unsupported", "nothing"}),
        ("none", set()),
    ],
)
def test_what_is_computed_again_is_a_choice(bench: Bench, kinds: str, again: set[str]) -> None:
    mishaps = ["solver", "memory", "slow", "unsupported", "nothing"]
    suite = [fake(prepares=mishap) for mishap in mishaps]
    first = bench.run(*suite, limits={"seconds": 0.1})
    assert outcomes(first.rows)["fake(prepares=slow)"] == {Outcome.TIMED_OUT}
    finished = bench.run(*suite, rerun=kinds)
    assert finished.computed == 3 * len(again)
    assert {step.split("prepares=")[-1].split(")")[0] for step in bench.watcher.steps} - {"fake on plane, L2"} == (
        again - {"nothing"}
    )


def test_a_mended_failure_is_answered_by_the_next_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run(fake(prepares="solver"))
    monkeypatch.setitem(MISHAPS, "solver", lambda: None)
    assert outcomes(bench.run(fake(prepares="solver")).rows) == {"fake(prepares=solver)": {Outcome.COMPLETED}}


def test_the_time_limit_keeps_what_was_computed(bench: Bench) -> None:
    rows = bench.run(fake(certifies="slow"), fake(), batch=1, limits={"seconds": 0.3}).rows
    assert [row.outcome for row in rows] == [Outcome.COMPLETED] * 2 + [Outcome.TIMED_OUT] + [Outcome.COMPLETED] * 3
    assert "limit of 0.3 s was spent with 1 inputs left" in rows[2].reason


# attacks


def test_an_unsound_certifier_is_caught(bench: Bench) -> None:
    rows = bench.run(fake(radius=100.0), "lipschitz", attacks={"steps": 10}).rows
    assert [row.unsound for row in rows] == [True] * 3 + [False] * 3
    assert all(row.upper < 2 for row in rows)


def test_smoothed_rows_have_no_counterexample_of_the_base(bench: Bench) -> None:
    rows = bench.run(SMOOTHING, "fake", attacks={"steps": 3}).rows
    assert {row.upper for row in rows if row.subject is Subject.SMOOTHED} == {math.inf}
    assert math.inf not in {row.upper for row in rows if row.subject is Subject.BASE}


def test_nobody_is_attacked_for_smoothing_alone(bench: Bench) -> None:
    bench.run(SMOOTHING, attacks={"steps": 3})
    assert "attacked" not in bench.watcher.counts


def test_misclassified_inputs_are_not_attacked(bench: Bench) -> None:
    bench.weights([[0.0, -9.0], [0.0, 1.0], [-9.0, -9.0]])
    assert [row.upper < math.inf for row in bench.run("fake", attacks={"steps": 3}).rows] == [False, True, True]


def test_an_attack_that_fails_costs_no_certificate_and_is_no_secret(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("no gradient")

    monkeypatch.setattr(stages, "attack", broken)
    finished = bench.run("fake", attacks={"steps": 3})
    assert outcomes(finished.rows) == {"fake": {Outcome.COMPLETED}}
    assert finished.unaudited == 3
    assert "attacks on plane failed: RuntimeError: no gradient" in bench.watcher.notes[0]
    monkeypatch.setattr(stages, "attack", battery.attack)
    again = bench.run("fake", attacks={"steps": 3})
    assert (again.computed, again.unaudited) == (3, 0)


# estimates

ATTACKS = {"attacks": {"steps": 3}}
CLEVER = {"clever": {"radius": {"2": 5.0}, "batches": 2, "samples": 3}}


def test_estimates_change_no_row_and_are_computed_once(bench: Bench) -> None:
    without = bench.run("lipschitz", SMOOTHING, **ATTACKS)
    assert without.estimates == []
    first = bench.run("lipschitz", SMOOTHING, **ATTACKS, **CLEVER)
    assert (first.computed, bench.watcher.counts["estimated"]) == (3, 3)
    assert (first.rows, first.unaudited) == (without.rows, 0)
    assert [estimate.input for estimate in first.estimates] == [0, 1, 2]
    radii = [row.radius for row in first.rows if row.certifier == "lipschitz"]
    assert [estimate.value for estimate in first.estimates] == pytest.approx(radii)  # the network is linear
    assert all(estimate.value <= estimate.upper < 2 for estimate in first.estimates)
    assert {estimate.method for estimate in first.estimates} == {"clever(batches=2, samples=3, radius=5)"}
    second = bench.run("lipschitz", SMOOTHING, **ATTACKS, **CLEVER)
    assert (second.computed, second.estimates) == (0, first.estimates)
    assert bench.watcher.done == bench.watcher.total == 12
    assert bench.run("lipschitz", SMOOTHING, **ATTACKS).estimates == []


@pytest.mark.parametrize(
    ("change", "computed"),
    [
        ({"clever": {**CLEVER["clever"], "samples": 4}}, 3),
        ({"clever": {**CLEVER["clever"], "radius": {"2": 4.0}}}, 3),
        ({"attacks": {"steps": 0}}, 0),
        ({"batch": 1}, 0),
        ({"model": "renamed"}, 0),
    ],
    ids=str,
)
def test_settings_of_estimates_change_their_keys(bench: Bench, change: dict[str, Any], computed: int) -> None:
    bench.run("fake", **ATTACKS, **CLEVER)
    assert bench.run("fake", **{**ATTACKS, **CLEVER, **change}).computed == computed


def test_only_norms_with_a_radius_and_base_classifiers_are_estimated(bench: Bench) -> None:
    estimates = bench.run("lipschitz", norms=[1, 2], **CLEVER).estimates
    assert [(estimate.norm, estimate.upper) for estimate in estimates] == [(2.0, math.inf)] * 3
    assert bench.run(SMOOTHING, **CLEVER).estimates == []


def test_estimates_that_fail_cost_nothing_and_are_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("no gradient")

    with monkeypatch.context() as patch:
        patch.setattr(stages, "clever", broken)
        finished = bench.run("fake", **ATTACKS, **CLEVER)
    assert (outcomes(finished.rows), finished.estimates) == ({"fake": {Outcome.COMPLETED}}, [])
    assert "estimates of plane, L2 failed: RuntimeError: no gradient" in bench.watcher.notes[0]
    again = bench.run("fake", **ATTACKS, **CLEVER)
    assert (again.computed, len(again.estimates)) == (3, 3)


# interruptions and full disks


def test_an_interrupted_run_goes_on_where_it_stopped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = [fake(), fake(certifies="interrupt"), fake(radius=1e-8)]
    with pytest.raises(KeyboardInterrupt):
        bench.run(*suite, attacks={"steps": 3})
    monkeypatch.setitem(MISHAPS, "interrupt", lambda: None)
    finished = bench.run(*suite, attacks={"steps": 3})
    assert (finished.computed, bench.watcher.done) == (6, 6)
    assert len(finished.rows) == 9


@pytest.mark.parametrize("where", ["prepares", "certifies"])
def test_ctrl_c_waits_for_the_batch_at_hand(bench: Bench, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setitem(MISHAPS, "interrupt", lambda: signal.raise_signal(signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted):
        bench.run(fake(**{where: "interrupt"}), batch=2)
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setitem(MISHAPS, "interrupt", lambda: None)
    assert bench.run(fake(**{where: "interrupt"}), batch=2).computed == (1 if where == "certifies" else 3)


def test_a_second_ctrl_c_does_not_wait(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MISHAPS, "interrupt", lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt) as caught:
        bench.run(fake(certifies="interrupt"))
    assert caught.type is KeyboardInterrupt


def test_a_folder_that_cannot_be_written_is_said(bench: Bench) -> None:
    (bench.folder / "run").touch()
    with pytest.raises(StoreError):
        bench.run("fake")


def test_a_manifest_that_cannot_be_written_is_said(bench: Bench) -> None:
    (bench.folder / "run").mkdir()
    draft(bench.folder / "run" / "manifest.json").symlink_to("/dev/full")
    with pytest.raises(StoreError, match=r"manifest\.json: .*No space left"):
        bench.run("fake")


def test_a_log_that_cannot_be_written_is_said(bench: Bench) -> None:
    (bench.folder / "run").mkdir()
    (bench.folder / "run" / "errors.log").symlink_to("/dev/full")
    with pytest.raises(StoreError, match=r"errors\.log: .*No space left"):
        bench.run(fake(prepares="bug"))


def test_nothing_is_written_before_models_and_data_are_there(bench: Bench) -> None:
    with pytest.raises(ConfigError):
        bench.run("fake", data="missing.npz")
    assert not (bench.folder / "run").exists()


def test_the_manifest_says_what_was_run(bench: Bench) -> None:
    finished = bench.run(fake(radius=0.0), SMOOTHING, radii={"2": [0.1]})
    manifest = json.loads((finished.folder / "manifest.json").read_text())
    assert manifest == finished.manifest
    assert manifest["certifiers"][0] == {"name": "fake", "prepares": "nothing", "certifies": "nothing", "radius": 0.0}
    assert manifest["suite"]["radii"] == {"2.0": [0.1]}
    assert manifest["data"]["inputs"] == 3
    assert set(manifest["models"]) == {"plane"}
    assert {path.name for path in finished.folder.iterdir()} == {"manifest.json", "results.db"}
