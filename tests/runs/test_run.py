"""Runs: nothing is computed twice, nothing is lost, and no failure stops the others."""

import json
import signal
from typing import Any

import pytest

from certbench.core.claims import Outcome
from certbench.errors import ConfigError, StoreError
from certbench.runs.events import Interrupted
from tests.support.disk import full_for
from tests.support.runs import CALLS, MISHAPS, SMOOTHING, Bench, fake, outcomes

pytestmark = pytest.mark.machine


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
        {"name": name, "factory": f"{Bench.__module__}:make", "weights": str(bench.folder / f"{name}.safetensors")}
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
    with full_for("manifest.json"), pytest.raises(StoreError, match=r"manifest\.json: .*No space left"):
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
