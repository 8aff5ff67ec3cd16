"""No name and no reason of others acts on the terminal or passes for a line of ours, in any command."""

import csv
import json
import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from certbench.cli import console
from certbench.cli.progress import ProgressWatcher
from certbench.errors import SolverError, UnsupportedError
from certbench.exit_codes import ExitCode
from tests.cli.conftest import FOLDER, Run, write
from tests.support.nasty import ALL, FORGED, NASTY, forged, hidden
from tests.support.runs import MISHAPS, raises

NAME = ALL.replace("\ud800", "")
"""A name that a suite may have; no file takes a lone surrogate."""


def checked(answer: tuple[int, str, str], *codes: ExitCode) -> str:
    """What a command printed; it may neither act nor be forged."""
    code, out, err = answer
    assert code in codes, out + err
    for text in (out, err):
        assert hidden(text) == [] and forged(text) == []
    return out


def altered(statement: str) -> None:
    """Change the store of the run by hand."""
    connection = sqlite3.connect(FOLDER / "results.db")
    with connection:
        connection.execute(statement)
    connection.close()


def test_names_and_reasons_are_words_in_every_command(certbench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MISHAPS, "unsupported", raises(UnsupportedError(ALL)))
    monkeypatch.setitem(MISHAPS, "solver", raises(SolverError(ALL)))
    monkeypatch.setitem(MISHAPS, "bug", raises(TypeError(ALL)))
    model = {"name": NAME, "factory": "my_plane:linear", "weights": "plane.safetensors"}
    bad = [
        {"name": "fake", word: kind} for word in ("prepares", "certifies") for kind in ("unsupported", "solver", "bug")
    ]
    write(models=[model], certifiers=["lipschitz", {"name": "fake", "radius": 9.0}, *bad])
    known = [
        {"model": NAME.replace("[", "?"), "kind": "failed", "reason": NAME},
        {"input": 7, "kind": "lost", "reason": NAME},
    ]
    Path("known.yaml").write_text(json.dumps(known))
    checked(certbench("run", "little.yaml", "--known", "known.yaml"), ExitCode.OK)
    altered("UPDATE results SET upper = 0.5 WHERE radius = 9")
    for arguments in (
        ("show", str(FOLDER)),
        ("report", str(FOLDER), "--markdown"),
        ("audit", str(FOLDER), "--steps", "3"),
        ("baseline", "update", str(FOLDER), "--reason", NAME),
    ):
        out = checked(certbench(*arguments), ExitCode.UNSOUND)
        assert "--markdown" not in arguments or re.search(r"[^\\]\[x]\(", out) is None
    page = (FOLDER / "report.html").read_text(encoding="utf-8")
    assert hidden(page) == [] and "<script>alert" not in page
    log = (FOLDER / "errors.log").read_text(encoding="utf-8")
    assert hidden(log) == [] and [line for line in log.splitlines() if line.startswith(FORGED)] == []
    write(models=[model], certifiers=["lipschitz"])
    checked(certbench("run", "little.yaml"), ExitCode.OK)
    checked(certbench("baseline", "update", str(FOLDER), "--reason", NAME, "--file", "base.json"), ExitCode.OK)
    checked(certbench("baseline", "show", "base.json"), ExitCode.OK)
    checked(certbench("export-certificates", str(FOLDER), "--out", "files"), ExitCode.OK, ExitCode.INCOMPLETE)
    (first,) = [*Path("files").glob("*.json")][:1] or [None]
    if first is not None:
        first.rename(first.with_name("\x1b[2J.json"))
    checked(certbench("check", "files"), ExitCode.OK, ExitCode.UNSOUND)
    altered("UPDATE results SET radius = radius / 2")
    for shape in ("text", "markdown", "json", "junit"):
        found = certbench("compare", "base.json", str(FOLDER), "--format", shape, "--out", "out.txt")
        checked(found, ExitCode.VIOLATED)
        checked((found[0], Path("out.txt").read_text(encoding="utf-8"), ""), ExitCode.VIOLATED)
        checked(certbench("compare", "base.json", str(FOLDER), "--format", shape), ExitCode.VIOLATED)


def test_names_of_files_and_their_words_are_words(certbench: Run) -> None:
    name = f"=1+1\x1b[2J\n{FORGED}\u202e[x](y)"
    Path(f"{name}.txt").write_text("label,a,b\n0,900,100\n1,20,980\n")
    checked(certbench("recertify", f"{name}.txt", "--sigma", "0.5", "--out", "out.csv"), ExitCode.OK)
    with open("out.csv", encoding="utf-8", newline="") as file:
        assert all(cell[:1] != "=" and hidden(cell) == [] for row in csv.reader(file) for cell in row)
    Path(name).mkdir()
    log = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
    (Path(name) / "log_sigma_0.5").write_text(log + "0\t1\t1\t9.9\t1\t0:01\n1\t1\t1\t0.3\t1\t0:01\n")
    (Path(name) / "bad").write_text(log + f"{ALL[3:]!r}\t1\n")
    (Path(name) / "results.csv").write_text(f"cat,a{NAME!r}.onnx,b.vnnlib,0,sat,1\n", encoding="utf-8")
    checked(certbench("audit-log", name, "--n", "100"), ExitCode.OK, ExitCode.UNSOUND, ExitCode.USAGE)
    np.savez(f"{name}.npz", inputs=np.zeros((1, 2), dtype=np.float32), labels=np.zeros(1, dtype=np.int64))
    checked(
        certbench("certify", "my_plane:linear", "--data", f"{name}.npz", "--weights", "plane.safetensors"), ExitCode.OK
    )
    for word in NASTY:
        for command in ("show", "run", "validate", "report", "compare", "audit"):
            checked(certbench(command, *[word] * (1 + (command == "compare"))), ExitCode.USAGE)


@pytest.mark.parametrize("terminal", [False, True])
def test_the_progress_shows_names_as_words(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console.err, "_force_terminal", terminal)
    with ProgressWatcher() as watcher:
        watcher.data(ALL)
        watcher.begin(2, 0)
        watcher.now(ALL)
        watcher.note(ALL)
        watcher.advance({"completed": 1})
    err = capsys.readouterr().err
    assert "loud[/]" in err
    assert forged(err) == [] and not {"\u202e", "\x9b", "\x07", "\u2028"} & set(err)
    assert "\x1b]8" not in err
