"""The command `run`: exit codes, one clear message and never a traceback, what a full disk or Ctrl-C leaves."""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from certbench.exit_codes import ExitCode
from certbench.files.locking import FolderLock
from certbench.models import zoo
from certbench.results.store import Store
from certbench.runs import work
from certbench.verifiers.linear.lirpa.release_0_3 import INSTALL
from tests.cli.conftest import FOLDER, Run, write
from tests.support.disk import full_for
from tests.support.runs import MISHAPS


def test_a_users_own_model_and_data_run_from_the_current_directory(certbench: Run) -> None:
    code, out, _ = certbench("run", "little.yaml")
    assert code == 0
    assert "3 rows; 3 rows and attacks computed now" in out
    assert (FOLDER / "report.html").exists()
    assert "; 0 rows and attacks computed now" in certbench("run", "little.yaml")[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inptus": 3}, "little.yaml, line 1: inptus: unknown setting 'inptus'; did you mean 'inputs'?"),
        ({"certifiers": ["lipshitz"]}, "did you mean 'lipschitz'?"),
        ({"models": ["mlp-plian"]}, "did you mean 'mlp-plain'?"),
        ({"data": "plain.npz"}, "there is no file plain.npz"),
        ({"inputs": 4}, "4 inputs are wanted, but plane has 3"),
        ({"models": [{"name": "x", "factory": "my_plane:liner", "weights": "plane.safetensors"}]}, "'linear'"),
        ({"models": [{"name": "x", "factory": "my_plane:linear", "weights": "my_plane.py"}]}, "damaged"),
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_suite_that_cannot_be_run_is_one_message(
    certbench: Run, command: str, change: dict[str, Any], words: str
) -> None:
    write(**change)
    code, out, err = certbench(command, "little.yaml")
    assert (code, out) == (ExitCode.USAGE, "")
    assert words in err
    assert err.startswith("error: little.yaml, line 1: ")
    assert err.count("\n") == 1
    assert not FOLDER.exists()


def test_damaged_weights_of_the_zoo_are_refused(certbench: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in ("json", "safetensors"):
        shutil.copy(zoo.WEIGHTS / f"linear.{suffix}", home)
    with open("linear.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    monkeypatch.setattr(zoo, "load", partial(zoo.load, folder=home))
    write(models=["linear"], data="digits")
    code, _, err = certbench("run", "little.yaml")
    assert code == ExitCode.USAGE
    assert "linear.safetensors is damaged" in err
    assert "certbench train linear" in err


def test_an_unsound_certificate_is_shouted(certbench: Run) -> None:
    write(certifiers=[{"name": "fake", "radius": 100.0}], attacks={"steps": 5})
    for arguments in (("run", "little.yaml"), ("show", str(FOLDER)), ("report", str(FOLDER))):
        code, _, err = certbench(*arguments)
        assert code == ExitCode.UNSOUND
        assert "UNSOUND: fake(radius=100) on plane, norm 2, input 0: radius 100, but a counterexample lies at" in err
        assert "3 certificates are refuted" in err


def test_known_issues_are_shown_and_do_not_decide_and_stale_ones_are_named(certbench: Run) -> None:
    write(certifiers=[{"name": "fake", "radius": 100.0}], attacks={"steps": 5})
    fake = {"certifier": "fake*", "kind": "unsound", "reason": "a plant"}
    stale = {"certifier": "fake*", "kind": "failed", "reason": "was mended"}
    for inputs, code in (([0, 1, 2], ExitCode.OK), ([0, 1], ExitCode.UNSOUND)):
        Path("known.yaml").write_text(json.dumps([{**fake, "input": inputs}, stale]))
        for arguments in (("run", "little.yaml"), ("show", str(FOLDER)), ("report", str(FOLDER))):
            found, _, err = certbench(*arguments, "--known", "known.yaml")
            assert found == code
            assert "known: fake(radius=100) on plane, norm 2, input 0: unsound: a plant" in err
            assert f"{len(inputs)} problems are known issues" in err
            assert "stale: no row has the problem of this known issue any more: failed" in err and "was mended" in err
    assert certbench("run", "little.yaml", "--known", "none.yaml")[0] == ExitCode.USAGE


def test_a_refuted_estimate_is_shown_and_changes_no_exit_code(certbench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "clever", lambda model, x, threat, **options: torch.full((len(x),), 5.0))
    write(attacks={"steps": 5}, clever={"radius": {"2": 5}})
    for arguments in (("run", "little.yaml"), ("show", str(FOLDER)), ("report", str(FOLDER), "--markdown")):
        code, out, err = certbench(*arguments)
        assert code == ExitCode.OK
        assert "Estimates prove nothing" in out and "3 of 3" in out
        assert "UNSOUND" not in out + err
    assert "Estimates prove nothing" in (FOLDER / "report.html").read_text()


@pytest.mark.parametrize(
    ("mishap", "code"), [("solver", ExitCode.INCOMPLETE), ("bug", 5), ("memory", 5), ("unsupported", 0)]
)
def test_rows_without_an_answer_show_in_the_exit_code(certbench: Run, mishap: str, code: int) -> None:
    write(certifiers=["lipschitz", {"name": "fake", "prepares": mishap}])
    found, _, err = certbench("run", "little.yaml")
    assert found == code
    assert ("3 rows have no answer" in err) == (code == 5)


def test_a_missing_backend_fails_its_rows_until_it_is_mended(
    certbench: Run, monkeypatch: pytest.MonkeyPatch, lirpa: ModuleType
) -> None:
    class Hide:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "auto_LiRPA":
                raise ModuleNotFoundError(f"No module named {name!r}")

    write(certifiers=["lipschitz", {"name": "ibp", "engine": "auto-lirpa"}])
    with monkeypatch.context() as missing:
        missing.delitem(sys.modules, "auto_LiRPA")
        missing.setattr(sys, "meta_path", [Hide(), *sys.meta_path])
        code, _, err = certbench("run", "little.yaml")
    assert code == ExitCode.INCOMPLETE
    assert INSTALL in err
    code, out, _ = certbench("run", "little.yaml")
    assert code == 0
    assert "6 rows; 3 rows and attacks computed now" in out


@pytest.mark.parametrize("file", ["manifest.json", "report.html"])
def test_a_full_disk_is_said(certbench: Run, file: str) -> None:
    FOLDER.mkdir(parents=True)
    with full_for(file):
        code, _, err = certbench("run", "little.yaml")
    assert code == ExitCode.STORE
    assert "No space left on device" in err and file in err
    assert certbench("run", "little.yaml")[0] == 0


def test_a_full_disk_under_the_database_is_said(certbench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    put = Store.put

    def full(store: Store, results: Any) -> None:
        store._connection.execute("PRAGMA max_page_count = 1")
        put(store, [replace(result, reason="x" * 100_000) for result in results])

    monkeypatch.setattr(Store, "put", full)
    code, _, err = certbench("run", "little.yaml")
    assert code == ExitCode.STORE
    assert "database or disk is full; what was stored before is intact" in err
    assert "To go on once this is solved: certbench run little.yaml" in err


def test_a_damaged_database_is_said(certbench: Run) -> None:
    certbench("run", "little.yaml")
    (FOLDER / "results.db").write_bytes(b"garbage" * 1000)
    for arguments in (("show", str(FOLDER)), ("run", "little.yaml")):
        code, _, err = certbench(*arguments)
        assert code == ExitCode.STORE
        assert "results.db" in err


def test_ctrl_c_keeps_what_was_computed_and_says_how_to_go_on(home: Path) -> None:
    write(certifiers=["lipschitz", {"name": "smoothing", "n": 400_000}], batch=1, executor="process", workers=1)
    command = [sys.executable, "-m", "certbench.cli", "run", "little.yaml", "--out", "my run"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "] smoothing" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == ExitCode.INTERRUPTED
    asked, _, said = rest.strip().partition("\n")
    assert re.fullmatch("finishing the batch at hand(, up to 1 inputs)?; again to stop now", asked)
    assert said == "interrupted; computed rows are stored. To go on: certbench run little.yaml --out 'my run'"
    store = Store(Path("my run/results.db"))
    stored = len(store.rows())
    store.close()
    assert 3 <= stored < 6
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    history = json.loads(Path("my run/manifest.json").read_text())["history"]
    assert [("interrupted" in call, "finished" in call) for call in history] == [(True, False), (False, True)]
    assert all(call["seconds"] > 0 and "my run" in call["command"] for call in history)
    assert f"6 rows; {6 - stored} rows and attacks computed now" in done.stdout


def test_an_interruption_inside_a_certifier_is_one_too(certbench: Run) -> None:
    assert "interrupt" in MISHAPS
    write(certifiers=["lipschitz", {"name": "fake", "prepares": "interrupt"}])
    code, _, err = certbench("run", "little.yaml")
    assert code == ExitCode.INTERRUPTED
    assert "To go on: certbench run little.yaml" in err
    for command in ("show", "report", "status"):
        code, out, err = certbench(command, str(FOLDER))
        assert code == ExitCode.INCOMPLETE
        assert "3 of 6 rows" in (out if command == "status" else err.splitlines()[0])
    assert "INCOMPLETE: 3 of 6 rows have not been computed yet." in (FOLDER / "report.html").read_text()


def test_a_dry_run_computes_nothing_and_says_what_a_run_would_take(
    certbench: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    write(certifiers=["lipschitz", "splitting", "crown", "branch-and-bound"])
    code, out, _ = certbench("run", "little.yaml", "--dry-run")
    assert (code, FOLDER.exists()) == (0, False)
    assert "unsupported: splitting" in out
    assert all(len(line) <= 80 for line in out.splitlines() if not line.startswith("unsupported"))
    rows = {line.split()[2]: line.split()[5:] for line in out.splitlines() if line.startswith("plane")}
    assert rows["lipschitz"] == ["unknown", "unknown"] and rows["splitting"] == []
    assert rows["crown"][:3] == ["under", "1", "s"] and rows["crown"][4] == "MB"
    assert rows["branch-and-bound"][0] == "unknown" and rows["branch-and-bound"][2] == "MB"  # a search has no end
    assert "In all under 1 s of one worker, and 2 pairs of unknown time." in out
    certbench("run", "little.yaml", "--certifiers", "lipschitz", "--inputs", "2")
    _, out, _ = certbench("run", "little.yaml", "--dry-run")
    row = next(line.split() for line in out.splitlines() if "lipschitz" in line)
    assert row[3:] == ["3", "2", "under", "1", "s", "unknown"]
    assert "and 1 pair of unknown time." in out


def test_parts_and_settings_of_a_suite_are_chosen(certbench: Run) -> None:
    write(norms=[2, "inf"], certifiers=["lipschitz", {"name": "crown", "search": "secant"}, "ibp"])
    words = ("--norms", "Linf", "--certifiers", "crown,fast-lin", "--models", "plane", "--inputs", "1")
    code, out, _ = certbench("run", "little.yaml", *words, "--set", "seed=3", "--set", "certifiers.crown.engine=own")
    assert code == 0 and "2 rows; 2 rows" in out
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    assert (manifest["suite"]["seed"], [spec["name"] for spec in manifest["certifiers"]]) == (3, ["crown", "fast-lin"])
    assert manifest["certifiers"][0]["engine"] == "own"
    for words, message in (
        (("--certifiers", "crwn"), "did you mean 'crown'"),
        (("--models", "plan"), "did you mean 'plane'"),
        (("--set", "seed"), "write key=value"),
        (("--set", "certifiers.lp.tighten=true"), "no certifier 'lp'"),
        (("--set", "attacks.stepz=0"), "did you mean 'steps'"),
        (("--set", "name.of=3"), "name"),
        (("--set", "seed=[1"), "not valid YAML"),
        (("--norms", "L3"), "L3"),
        (("--shard", "0/2"), "there is no shard 0/2"),
        (("--shard", "half"), "is no shard"),
    ):
        code, _, err = certbench("run", "little.yaml", *words)
        assert code == ExitCode.USAGE and message in err, err


@pytest.mark.parametrize("parts", [2, 3])
def test_shards_are_the_run(certbench: Run, parts: int) -> None:
    write(certifiers=["lipschitz", "crown"], attacks={"steps": 5})
    certbench("run", "little.yaml", "--out", "whole")
    folders = [f"part{i}" for i in range(parts)]
    for i, folder in enumerate(folders):
        assert certbench("run", "little.yaml", "--shard", f"{i + 1}/{parts}", "--out", folder)[0] in (0, 5)
    code, out, _ = certbench("merge", *folders, "--out", "merged")
    assert code == 0 and "6 rows of" in out

    def rows(folder: str) -> list[tuple[object, ...]]:
        store = Store(Path(folder) / "results.db", create=False)
        found = [(row.model, row.certifier, row.input, row.radius, row.upper) for row in store.rows()]
        store.close()
        return found

    assert rows("merged") == rows("whole") and len(rows("merged")) == 6
    assert [part["shard"] for part in json.loads(Path("merged/manifest.json").read_text())["parts"]] == [
        f"{i + 1}/{parts}" for i in range(parts)
    ]
    assert "6 rows; 0 rows and attacks" in certbench("run", "little.yaml", "--out", "merged")[1]
    code, _, err = certbench("merge", *folders, "--out", f"./{folders[0]}/../{folders[0]}")
    assert code == ExitCode.USAGE and "is one of the parts" in err
    for folder in folders:
        with contextlib.closing(sqlite3.connect(f"{folder}/results.db")) as database, database:
            database.execute("DELETE FROM attacks")
    code, _, err = certbench("merge", *folders, "--out", "unaudited")
    assert code == ExitCode.INCOMPLETE and "attacks on 3 inputs are missing" in err
    write(certifiers=["lipschitz"])
    certbench("run", "little.yaml", "--out", "other")
    code, _, err = certbench("merge", "part0", "other", "--out", "merged2")
    assert code == ExitCode.USAGE and "their suite differ" in err


@pytest.mark.parametrize("executor", ["inline", "process"])
def test_a_closed_pipe_neither_ends_a_run_nor_prints_a_traceback(home: Path, executor: str) -> None:
    command = f"{sys.executable} -m certbench.cli run little.yaml --executor {executor} 2>&1 | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("data plane: ")
    assert done.stderr == ""
    assert len(json.loads((FOLDER / "manifest.json").read_text())["finished"]) > 9
    store = Store(FOLDER / "results.db", create=False)
    assert len(store.rows()) == 3
    store.close()


def test_a_folder_has_one_writer(certbench: Run) -> None:
    lock = FolderLock(FOLDER)
    code, _, err = certbench("run", "little.yaml")
    assert code == ExitCode.STORE and "is being written by another run (process" in err
    assert not (FOLDER / "results.db").exists()
    lock.close()
    assert certbench("run", "little.yaml")[0] == ExitCode.OK
