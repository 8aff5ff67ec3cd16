"""The command line: exit codes, one clear message and never a traceback, and no heavy import for a light question."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from certbench import cli
from certbench.auditing import audit
from certbench.core import registry
from certbench.models import zoo
from certbench.models.cards import cards
from certbench.results.store import Store
from certbench.runs import stages
from certbench.runs.shipped import suites
from certbench.verifiers.linear.lirpa.release_0_3 import INSTALL
from tests.runs.test_run import MISHAPS, POINTS, Fake

FACTORY = """
from torch import nn

def linear():
    return nn.Sequential(nn.Linear(2, 3))
"""

SUITE: dict[str, Any] = {
    "name": "little",
    "data": "plane.npz",
    "inputs": 3,
    "models": [{"name": "plane", "factory": "my_plane:linear", "weights": "plane.safetensors"}],
    "norms": [2],
    "radii": {"2": [0.1]},
    "certifiers": ["lipschitz"],
    "attacks": {"steps": 0},
}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with a model, data and a suite."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_plane", raising=False)
    monkeypatch.setitem(registry.table(), "fake", f"{Fake.__module__}:Fake")
    (tmp_path / "my_plane.py").write_text(FACTORY)
    np.savez("plane.npz", inputs=POINTS, labels=np.arange(3))
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    safetensors.torch.save_file({"0.weight": weight, "0.bias": torch.zeros(3)}, "plane.safetensors")
    write()
    yield tmp_path
    sys.modules.pop("my_plane", None)


def write(**changes: Any) -> None:
    Path("little.yaml").write_text(json.dumps({**SUITE, **changes}))


@pytest.fixture
def certbench(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["certbench", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        streams = capsys.readouterr()
        assert "Traceback" not in streams.out + streams.err
        return int(caught.value.code or 0), streams.out, streams.err

    return run


FOLDER = Path("reports/runs/little")


def test_a_users_own_model_and_data_run_from_the_current_directory(certbench: Run) -> None:
    code, out, _ = certbench("run", "little.yaml")
    assert code == 0
    assert "3 rows, 3 computed now" in out
    assert (FOLDER / "report.html").exists()
    assert "0 computed now" in certbench("run", "little.yaml")[1]


def test_what_was_run_can_be_shown_and_reported_again(certbench: Run) -> None:
    certbench("run", "little.yaml", "--out", "here [1]")
    assert (certbench("show", "here [1]")[0], certbench("validate", "little.yaml")[0]) == (0, 0)
    (Path("here [1]") / "report.html").unlink()
    code, out, _ = certbench("report", "here [1]", "--markdown")
    assert code == 0
    assert "| " in out
    assert "Report: here [1]/report.html" in out
    assert (Path("here [1]") / "report.html").exists()


# what cannot be run: 2


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
    assert (code, out) == (cli.USAGE, "")
    assert words in err
    assert err.startswith("error: little.yaml, line 1: ")
    assert err.count("\n") == 1
    assert not FOLDER.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "defualt"), "unknown suite 'defualt'; did you mean 'default'?"),
        (("run", "missing.yaml"), "cannot read the suite missing.yaml"),
        (("run", "little.yaml", "--rerun", "error"), "did you mean 'errors'?"),
        (("run", "little.yaml", "--threads", "0"), "threads"),
        (("show", "crwon"), "unknown name or run 'crwon'; did you mean 'crown'?"),
        (("show", "mlp-plian"), "did you mean 'mlp-plain'?"),
        (("report", "nowhere"), "nowhere is not the folder of a run"),
        (("train", "lineer"), "did you mean 'linear'?"),
        (("rnu",), "rnu"),
    ],
)
def test_what_is_unknown_is_refused_with_the_nearest(certbench: Run, arguments: tuple[str, ...], words: str) -> None:
    code, _, err = certbench(*arguments)
    assert code == cli.USAGE
    assert words in err


def test_damaged_weights_of_the_zoo_are_refused(certbench: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in ("json", "safetensors"):
        shutil.copy(zoo.WEIGHTS / f"linear.{suffix}", home)
    with open("linear.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    monkeypatch.setattr(zoo, "load", partial(zoo.load, folder=home))
    write(models=["linear"], data="digits")
    code, _, err = certbench("run", "little.yaml")
    assert code == cli.USAGE
    assert "linear.safetensors is damaged" in err
    assert "certbench train linear" in err


# what was found: 3 and 5


def test_an_unsound_certificate_is_shouted(certbench: Run) -> None:
    write(certifiers=[{"name": "fake", "radius": 100.0}], attacks={"steps": 5})
    for arguments in (("run", "little.yaml"), ("show", str(FOLDER)), ("report", str(FOLDER))):
        code, _, err = certbench(*arguments)
        assert code == cli.UNSOUND
        assert "UNSOUND: fake(radius=100) on plane, norm 2, input 0: radius 100, but a counterexample lies at" in err
        assert "3 certificates are refuted" in err


@pytest.mark.parametrize("name", ["milp", "smoothing", "sdp", "best-of"])
def test_options_are_shown_with_their_ranges_at_80_columns(
    certbench: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = certbench("show", name)
    table = out[out.index("\noption ") :].splitlines()
    assert code == 0 and max(map(len, table)) <= 80 and "\u2026" not in out
    cells = [re.split(r"\s{2,}", line.strip()) for line in table]
    if name == "milp":
        assert ["seconds", "number, above 0, finite", "60"] in cells
        assert ["eps", "number, above 0, finite, or null", "null"] in cells
    if name == "smoothing":
        assert ["pareto.a", "number, above 2, at most 1000", "3"] in cells


def test_known_issues_are_shown_and_do_not_decide_and_stale_ones_are_named(certbench: Run) -> None:
    write(certifiers=[{"name": "fake", "radius": 100.0}], attacks={"steps": 5})
    fake = {"certifier": "fake*", "kind": "unsound", "reason": "a plant"}
    stale = {"certifier": "fake*", "kind": "failed", "reason": "was mended"}
    for inputs, code in (([0, 1, 2], cli.OK), ([0, 1], cli.UNSOUND)):
        Path("known.yaml").write_text(json.dumps([{**fake, "input": inputs}, stale]))
        for arguments in (("run", "little.yaml"), ("show", str(FOLDER)), ("report", str(FOLDER))):
            found, _, err = certbench(*arguments, "--known", "known.yaml")
            assert found == code
            assert "known: fake(radius=100) on plane, norm 2, input 0: unsound: a plant" in err
            assert f"{len(inputs)} problems are known issues" in err
            assert "stale: nothing is wrong any more with this known issue: failed" in err and "was mended" in err
    assert certbench("run", "little.yaml", "--known", "none.yaml")[0] == cli.USAGE


def test_a_refuted_estimate_is_shown_and_changes_no_exit_code(certbench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "clever", lambda model, x, threat, **options: torch.full((len(x),), 5.0))
    write(attacks={"steps": 5}, clever={"radius": {"2": 5}})
    for arguments in (("run", "little.yaml"), ("show", str(FOLDER)), ("report", str(FOLDER), "--markdown")):
        code, out, err = certbench(*arguments)
        assert code == cli.OK
        assert "Estimates prove nothing" in out and "3 of 3" in out
        assert "UNSOUND" not in out + err
    assert "Estimates prove nothing" in (FOLDER / "report.html").read_text()


@pytest.mark.parametrize(
    ("mishap", "code"), [("solver", cli.INCOMPLETE), ("bug", 5), ("memory", 5), ("unsupported", 0)]
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

    write(certifiers=["lipschitz", "ibp"])
    with monkeypatch.context() as missing:
        missing.delitem(sys.modules, "auto_LiRPA")
        missing.setattr(sys, "meta_path", [Hide(), *sys.meta_path])
        code, _, err = certbench("run", "little.yaml")
    assert code == cli.INCOMPLETE
    assert INSTALL in err
    code, out, _ = certbench("run", "little.yaml")
    assert code == 0
    assert "6 rows, 3 computed now" in out


# results that cannot be written or read: 6


@pytest.mark.parametrize("file", ["manifest.json.part", ".report.html.PID.tmp"])
def test_a_full_disk_is_said(certbench: Run, file: str) -> None:
    name = file.replace("PID", str(os.getpid()))
    FOLDER.mkdir(parents=True)
    (FOLDER / name).symlink_to("/dev/full")
    code, _, err = certbench("run", "little.yaml")
    assert code == cli.STORE
    assert "No space left on device" in err
    (FOLDER / name).unlink(missing_ok=True)
    assert certbench("run", "little.yaml")[0] == 0


def test_a_full_disk_under_the_database_is_said(certbench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    put = Store.put

    def full(store: Store, results: Any) -> None:
        store._connection.execute("PRAGMA max_page_count = 1")
        put(store, [replace(result, reason="x" * 100_000) for result in results])

    monkeypatch.setattr(Store, "put", full)
    code, _, err = certbench("run", "little.yaml")
    assert code == cli.STORE
    assert "database or disk is full; what was stored before is intact" in err
    assert "To go on when that is mended: certbench run little.yaml" in err


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"suite": 3}', '{"suite": {"radii": {"two": []}}}'])
def test_a_damaged_manifest_is_said(certbench: Run, text: str) -> None:
    certbench("run", "little.yaml")
    (FOLDER / "manifest.json").write_text(text)
    code, _, err = certbench("show", str(FOLDER))
    assert code == cli.STORE
    assert "manifest.json" in err


def test_a_damaged_database_is_said(certbench: Run) -> None:
    certbench("run", "little.yaml")
    (FOLDER / "results.db").write_bytes(b"garbage" * 1000)
    for arguments in (("show", str(FOLDER)), ("run", "little.yaml")):
        code, _, err = certbench(*arguments)
        assert code == cli.STORE
        assert "results.db" in err


# interrupted: 130


def test_ctrl_c_keeps_what_was_computed_and_says_how_to_go_on(home: Path) -> None:
    write(certifiers=["lipschitz", {"name": "smoothing", "n": 400_000}], batch=1)
    command = [sys.executable, "-m", "certbench.cli", "run", "little.yaml", "--out", "my run"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "] smoothing" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == cli.INTERRUPTED
    assert rest == "interrupted; what was computed is stored. To go on: certbench run little.yaml --out 'my run'\n"
    store = Store(Path("my run/results.db"))
    stored = len(store.rows())
    store.close()
    assert 3 <= stored < 6
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert f"6 rows, {6 - stored} computed now" in done.stdout


def test_ctrl_c_at_another_moment_is_one_word(certbench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "summary", interrupt)
    code, _, err = certbench("list")
    assert (code, err) == (cli.INTERRUPTED, "interrupted\n")


def test_ctrl_c_during_an_audit_says_how_to_go_on(certbench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(audit, "run", interrupt)
    code, _, err = certbench("audit", "my run", "--steps", "9")
    assert code == cli.INTERRUPTED
    assert err == (
        "interrupted; the counterexamples that were found are stored. To go on: certbench audit 'my run' --steps 9\n"
    )


def test_an_interruption_inside_a_certifier_is_one_too(certbench: Run) -> None:
    assert "interrupt" in MISHAPS
    write(certifiers=["lipschitz", {"name": "fake", "prepares": "interrupt"}])
    code, _, err = certbench("run", "little.yaml")
    assert code == cli.INTERRUPTED
    assert "To go on: certbench run little.yaml" in err
    assert certbench("show", str(FOLDER))[2] == "note: 3 rows of this run have not been computed yet\n"


# light questions


def test_light_questions_import_nothing_heavy(certbench: Run) -> None:
    certbench("run", "little.yaml")
    code = f"""
import sys
from certbench import cli
for arguments in ["--help"], ["run", "--help"], ["list"], ["report", {str(FOLDER)!r}], ["show", {str(FOLDER)!r}]:
    sys.argv = ["certbench", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, arguments
    heavy = {{"torch", "scipy", "cvxpy", "sklearn", "foolbox", "auto_LiRPA", "numpy"}} & sys.modules.keys()
    assert not heavy, (arguments, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_list_has_everything(certbench: Run) -> None:
    code, out, _ = certbench("list")
    assert code == 0
    words = {line.split()[0] for line in out.splitlines() if line}
    assert {*registry.table(), *cards(), *suites()} <= words
    text = " ".join(out.split())  # long ones are wrapped
    assert all(" ".join(registry.summary(name).split()) in text for name in registry.table())


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        ("crown", ["crown: sound, certifies the base classifier, L1, L2, Linf", "search", "secant"]),
        ("smoothing", ["probabilistic", "smoothed", "noise", "gaussian", "0.25", "two-class"]),
        ("mlp-plain", ['"sha256"', '"architecture": "mlp"']),
        ("default", ["name: default", "certifiers:"]),
    ],
)
def test_things_are_shown_by_their_name(certbench: Run, thing: str, words: list[str]) -> None:
    code, out, _ = certbench("show", thing)
    assert code == 0
    assert [word for word in words if word not in out] == []


def test_help_names_the_exit_codes(certbench: Run) -> None:
    out = certbench("--help")[1]
    for code in (0, cli.USAGE, cli.UNSOUND, cli.INCOMPLETE, cli.STORE, cli.INTERRUPTED):
        assert f"{code} " in out


def test_the_version_is_printed(certbench: Run) -> None:
    assert certbench("--version")[1].strip() == cli.__version__
