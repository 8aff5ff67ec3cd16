"""Processes compute the rows that this process would, and lose no row but those of the pair that misbehaves."""

import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from certbench.core import registry
from certbench.errors import ConfigError
from certbench.runs.events import Interrupted
from certbench.runs.executors import process
from tests.runs.executors.misbehaving import Misbehaving
from tests.support.runs import DIGITS, POINTS, SMOOTHING, Bench, bits, points

pytestmark = pytest.mark.machine

INNOCENT = ["lipschitz", "crown", SMOOTHING]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setitem(registry.table(), "misbehaving", f"{Misbehaving.__module__}:Misbehaving")
    return Bench(tmp_path)


def misbehaving(deed: str = "nothing", **options: Any) -> dict[str, Any]:
    return {"name": "misbehaving", "deed": deed, **options}


def test_rows_attacks_and_estimates_are_equal_to_the_last_bit_whoever_computes(tmp_path: Path) -> None:
    found = {}
    for executor, workers in (("inline", 1), ("process", 1), ("process", 3)):
        folder = tmp_path / f"{executor}{workers}"
        folder.mkdir()
        bench = Bench(folder)
        suite = [
            "lipschitz",
            {"name": "alpha-crown", "iterations": 1, "search": {"name": "ladder", "eps": [0.05, 0.1]}},
            SMOOTHING,
        ]
        finished = bench.run(*suite, executor=executor, workers=workers, **DIGITS)
        assert finished.unaudited == 0
        found[executor, workers] = [bits(row) for row in finished.rows], points(bench), finished.estimates
    assert len(found["inline", 1][0]) == 5 * 2 * 3
    assert len(found["inline", 1][1]) > 5
    assert found["inline", 1] == found["process", 1] == found["process", 3]


FATES = {
    "segfault": ("failed", "by SIGSEGV, twice"),
    "abort": ("failed", "by SIGABRT, twice"),
    "os._exit": ("failed", "with exit code 0, twice"),
    "sys.exit": ("failed", "SystemExit: 0"),
    "base": ("failed", "Ending: the end"),
    "endless": ("timed out", "the limit of 3 s"),
    "endless in C": ("timed out", "the limit of 3 s"),
    "allocates": ("out of memory", "memory"),
    "halves": ("failed", "changed the classifier's parameters"),
    "hooks": ("failed", "hooks"),
    "trains": ("failed", "changed training flags"),
    "dtype": ("failed", "changed torch's default data type"),
    "threads": ("failed", "changed the number of torch's threads"),
    "gradients": ("failed", "changed whether torch records gradients"),
}


def test_the_guilty_pair_alone_is_blamed_at_the_first_run_and_at_the_next(bench: Bench) -> None:
    undisturbed = [bits(row) for row in bench.run(*INNOCENT, attacks={"steps": 3}, executor="inline").rows]
    (bench.folder / "run").rename(bench.folder / "undisturbed")
    guilty = [misbehaving(deed, above=0.5) for deed in FATES]
    suite = [misbehaving("patches"), guilty[0], INNOCENT[0], *guilty[1:5], INNOCENT[1], *guilty[5:], INNOCENT[2]]
    for _ in range(2):
        finished = bench.run(
            *suite, misbehaving("segfault", preparing=True), misbehaving(evidence="string"),
            attacks={"steps": 3}, limits={"seconds": 3, "memory": "1 GB"}, executor="process",
        )  # fmt: skip
        assert [bits(row) for row in finished.rows if "misbehaving" not in row.certifier] == undisturbed
        assert finished.unaudited == 0
        for deed, (outcome, reason) in FATES.items():
            rows = [row for row in finished.rows if row.spec.get("deed") == deed and not row.spec["preparing"]]
            assert (rows[0].outcome.value, rows[0].radius) == (outcome, 0.0), deed
            assert reason in rows[0].reason, deed
        (prepared,) = {row.reason for row in finished.rows if row.spec.get("preparing")}
        assert prepared == "the preparation ended its process by SIGSEGV, twice"
        (said,) = {row.reason for row in finished.rows if row.spec.get("evidence") == "string"}
        assert "evidence must be a JSON object, not a str" in said


def test_a_worker_that_is_killed_once_costs_no_row(bench: Bench) -> None:
    innocent = [row.radius for row in bench.run(misbehaving(once=__file__), executor="inline").rows]
    finished = bench.run(misbehaving(once=str(bench.folder / "dead")), batch=2, executor="process")
    assert [row.radius for row in finished.rows] == innocent
    assert {row.outcome.value for row in finished.rows} == {"completed"}
    assert bench.watcher.notes == []


def test_limits_of_an_input_and_of_the_preparation_kill(bench: Bench) -> None:
    start = time.monotonic()
    rows = bench.run(
        misbehaving("endless", above=0.5), misbehaving("endless in C", preparing=True), "lipschitz",
        limits={"input_seconds": 1.5, "prepare_seconds": 1.5}, executor="process",
    ).rows  # fmt: skip
    assert [row.outcome.value for row in rows] == [
        "timed out",
        *["completed"] * 2,
        *["timed out"] * 3,
        *["completed"] * 3,
    ]
    assert (rows[0].reason, rows[3].reason) == (
        "the limit of 1.5 s per input was spent", "the limit of 1.5 s for the preparation was spent",
    )  # fmt: skip
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(("megabytes", "share"), [(400, 9.0), (220, 0.5)], ids=["an exception", "a kill"])
def test_half_the_batch_is_tried_after_memory_ran_out_and_that_is_recorded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, megabytes: int, share: float
) -> None:
    monkeypatch.setattr(process, "SLACK", share)  # of the limit; a worker that uses more is killed
    rows = bench.run(misbehaving(megabytes=megabytes), limits={"memory": "1 GB"}, executor="process").rows
    assert [row.outcome.value for row in rows] == ["completed"] * 3
    assert [row.evidence.get("batch_after_out_of_memory") for row in rows] == [2, 2, 2]
    assert any("memory ran out" in note for note in bench.watcher.notes) == (share < 1)


def test_a_limit_of_time_loses_few_inputs(bench: Bench) -> None:
    rows = bench.run(misbehaving("endless", above=0.05), limits={"seconds": 2}, executor="process").rows
    assert [row.outcome.value for row in rows] == ["timed out"] * 3  # the first one never ends
    rows = bench.run(misbehaving("endless", above=-0.5), inputs=3, data=str(turned(bench)), limits={"seconds": 2},
                     executor="process").rows  # fmt: skip
    assert [row.outcome.value for row in rows] == ["completed", "timed out", "timed out"]  # in batches of 64


def turned(bench: Bench) -> Path:
    """Return the data in another order: the last input comes first."""
    path = bench.folder / "turned.npz"
    np.savez(path, inputs=POINTS[::-1].copy(), labels=np.array([2, 1, 0]))
    return path


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_waits_for_jobs_that_are_being_computed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], sent: signal.Signals
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(type(bench.watcher), "advance", lambda watcher, outcomes: signal.raise_signal(sent))
        with pytest.raises(Interrupted):
            bench.run(misbehaving("sleeps"), batch=1, executor="process", workers=1)
    assert "again to stop now" in capfd.readouterr().err
    assert bench.run(misbehaving("sleeps"), batch=1, executor="process", workers=1).computed in (1, 2)


def test_a_second_ctrl_c_ends_a_run_whose_worker_hears_nothing(bench: Bench) -> None:
    def press() -> None:
        for _ in range(2):
            time.sleep(1.5)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    pressing = threading.Thread(target=press)
    start = time.monotonic()
    pressing.start()
    with pytest.raises(KeyboardInterrupt) as caught:
        bench.run(misbehaving("endless in C"), executor="process")
    pressing.join()
    assert caught.type is KeyboardInterrupt
    assert time.monotonic() - start < 20
    assert signal.getsignal(signal.SIGINT) is before


def test_workers_that_have_another_certbench_are_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    import certbench

    monkeypatch.setattr(certbench, "__file__", "/elsewhere/certbench/__init__.py")
    with pytest.raises(ConfigError, match="PYTHONPATH"):
        bench.run("lipschitz", executor="process")
