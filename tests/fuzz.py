"""Mutations of valid files, read by the commands that read them: `python -m tests.fuzz [--seconds N] [--seed N]`.

A reader may accept a file or refuse it. It may not raise what nobody foresaw, and it may not hang.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

LONGEST = 10.0
"""Maximum number of seconds that a reader may take."""

HOSTILE: list[Any] = [
    -1, 0, 77, -5.0, 1e308, -1e308, 5e-324, 2**63, -(2**63), 2**64, 10**400, float("nan"), float("inf"), float("-inf"),
    None, True, "", "x", "nan", "-inf", "\x1b[2J\n0 unsound", "\ud800", "1" * 5000, [], {}, [[[[]]]], {"a": {"a": {}}},
]  # fmt: skip
"""What takes the place of a value."""

Command = list[str]


class Hang(BaseException):
    """A reader took too long."""


@dataclass(frozen=True)
class Reader:
    """A kind of file and the commands that read it.

    Attributes:
        file: the file that is mutated, relative to the working folder.
        commands: arguments of `certbench`.
        values: whether the file has a tree of values, that can be mutated as such.
    """

    file: str
    commands: tuple[Command, ...]
    values: str = "bytes"


RUN = "reports/runs/little"

READERS: dict[str, Reader] = {
    "suite": Reader("little.yaml", (["validate", "little.yaml"],), "json"),
    "npz": Reader("plane.npz", (["validate", "little.yaml"],)),
    "safetensors": Reader("plane.safetensors", (["validate", "little.yaml"],)),
    "policy": Reader("policy.yaml", (["compare", "base.json", RUN, "--policy", "policy.yaml"],), "json"),
    "known issues": Reader("known.yaml", (["show", RUN, "--known", "known.yaml"],), "json"),
    "baseline": Reader("base.json", (["compare", "base.json", RUN], ["baseline", "show", "base.json"]), "json"),
    "manifest": Reader(
        f"{RUN}/manifest.json",
        (
            ["report", RUN, "--markdown"],
            ["show", RUN],
            ["compare", RUN, RUN],
            ["export-certificates", RUN, "--out", "new"],
        ),
        "json",
    ),
    "store": Reader(
        f"{RUN}/results.db",
        (
            ["report", RUN, "--markdown"],
            ["show", RUN],
            ["compare", RUN, RUN],
            ["baseline", "update", RUN, "--reason", "r", "--file", "new.json"],
            ["recertify", RUN],
            ["export-certificates", RUN, "--out", "new"],
        ),
        "sqlite",
    ),
    "certificate": Reader("files/certificate.json", (["check", "files/certificate.json"],), "json"),
    "counts as text": Reader("counts.txt", (["recertify", "counts.txt", "--sigma", "0.5"],)),
    "counts as json": Reader("counts.json", (["recertify", "counts.json", "--sigma", "0.5"],), "json"),
    "counts as npz": Reader("counts.npz", (["recertify", "counts.npz", "--sigma", "0.5", "--out", "new.csv"],)),
    "log": Reader("log_sigma_0.5", (["audit-log", "log_sigma_0.5", "--n", "1000", "--alpha", "0.001"],)),
    "verdicts": Reader("results.csv", (["audit-log", "results.csv"],)),
}
"""All kinds of files that certbench reads."""


def prepare() -> None:
    """Make a valid file of each kind, in the current folder."""
    from tests.cli.conftest import FACTORY, SUITE
    from tests.support.runs import POINTS

    Path("my_plane.py").write_text(FACTORY)
    np.savez("plane.npz", inputs=POINTS, labels=np.arange(3))
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    safetensors.torch.save_file({"0.weight": weight, "0.bias": torch.zeros(3)}, "plane.safetensors")
    certifiers = ["crown", {"name": "smoothing", "n": 200}]
    Path("little.yaml").write_text(json.dumps({**SUITE, "certifiers": certifiers}))
    looser = {"looser": {"at_most": 3, "more_than": 0.1}, "lost": "warn"}
    policy = {"significance": 0.01, "tolerance": {"absolute": 1e-9, "relative": 1e-6}, "timing": {"at_most": 1.5}}
    policy |= {"classes": looser, "certifiers": {"crown*": {"classes": {"tighter": "ignore"}}}}
    Path("policy.yaml").write_text(json.dumps(policy))
    Path("known.yaml").write_text(
        json.dumps([{"model": "plane", "input": [0, 2], "norm": 2, "kind": "failed", "reason": "r"}])
    )
    Path("counts.txt").write_text("label,a,b\n0,900,100\n1,20,980\n")
    counts = [{"counts": [900, 100], "label": 0, "sigma": 0.5}, {"counts": [20, 980], "label": 1, "sigma": 0.5}]
    Path("counts.json").write_text(json.dumps(counts))
    np.savez("counts.npz", counts=np.array([[900, 100], [20, 980]]), labels=np.arange(2))
    head, rows = (
        "idx\tlabel\tpredict\tradius\tcorrect\ttime\n",
        ("0\t1\t1\t0.3\t1\t0:00:01.5", "1\t2\t-1\t0.0\t0\t0:00:02.5"),
    )
    Path("log_sigma_0.5").write_text(head + "\n".join(rows) + "\n")
    Path("results.csv").write_text("cat,a.onnx,a.vnnlib,0.1,sat,1.5\ncat,b.onnx,b.vnnlib,0.1,unsat,2.5\n")
    for arguments in (
        ["run", "little.yaml"],
        ["baseline", "update", RUN, "--reason", "first", "--file", "base.json"],
        ["export-certificates", RUN, "--out", "files", "--certifier", "crown"],
    ):
        code, _, said = called(arguments)
        assert code == 0, (arguments, said)
    next(path for path in sorted(Path("files").glob("plane*.json"))).rename("files/certificate.json")
    for reader in READERS.values():
        for command in reader.commands:
            code, _, said = called(command)
            assert code == 0, (command, code, said)
    clear()


def clear() -> None:
    """Delete what commands wrote."""
    for path in ("new.json", "new.csv"):
        Path(path).unlink(missing_ok=True)
    shutil.rmtree("new", ignore_errors=True)


def called(arguments: Command) -> tuple[int, str, str]:
    """Run a command in this process; return its exit code and what it printed."""
    from certbench import cli
    from certbench.cli import console

    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    files = [(stream, stream._file) for stream in (console.out, console.err)]
    sys.argv = ["certbench", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
        raise AssertionError("the command line did not end")
    except SystemExit as end:
        return int(end.code or 0), out.getvalue(), err.getvalue()
    finally:
        sys.argv = before
        for stream, file in files:
            stream._file = file


def mutated(kind: str, content: bytes, rng: random.Random) -> bytes:
    """Return a content that is damaged in one to three places."""
    if kind == "json" and rng.random() < 0.75:
        value = json.loads(content)
        for _ in range(rng.randint(1, 3)):
            value = _value(value, rng)
        text = json.dumps(value)
        return (_twice(text, rng) if rng.random() < 0.1 else text).encode("utf-8", "surrogatepass")
    if kind == "sqlite" and rng.random() < 0.75:
        return _stored(content, rng)
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        way, at = rng.randrange(6), rng.randrange(max(len(data), 1))
        if way == 0:
            del data[at:]
        elif way == 1 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif way == 2:
            del data[at : at + rng.randint(1, 20)]
        elif way == 3:
            data[at:at] = rng.choice(
                [b"\0", b"\xff\xfe", b"\n", b",", b"[" * 3000, b"{", b"9" * 400, b"-", b"nan", b"\x1b[2J"]
            )
        elif way == 4:
            data[at:at] = data[max(at - 50, 0) : at]
        else:
            data = bytearray(_number(bytes(data), rng))
    return bytes(data)


def _number(data: bytes, rng: random.Random) -> bytes:
    """Replace one of the numbers in a text."""
    import re

    found = [*re.finditer(rb"-?\d+(?:\.\d+)?", data)]
    if not found:
        return data
    one = rng.choice(found)
    word = rng.choice(
        [b"-1", b"1e308", b"nan", b"inf", b"9" * 30, b"1e400", b"0", b"-0.0", b"1_0", "٣".encode(), b"0x10"]
    )
    return data[: one.start()] + word + data[one.end() :]


def _value(value: Any, rng: random.Random) -> Any:
    """Replace, remove, repeat or bury a part of a tree of values."""
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        key = rng.choice([*value]) if isinstance(value, dict) else rng.randrange(len(value))
        changed = dict(value) if isinstance(value, dict) else [*value]
        if rng.random() < 0.1:
            del changed[key]
        elif rng.random() < 0.05 and isinstance(changed, dict):
            changed[rng.choice(["", "x", "\x1b", "norm"])] = changed.pop(key)
        elif rng.random() < 0.05 and isinstance(changed, list):
            changed.append(changed[key])
        else:
            changed[key] = _value(changed[key], rng)
        return changed
    if rng.random() < 0.05:
        deep: Any = value
        for _ in range(rng.choice([30, 90, 300])):
            deep = [deep]
        return deep
    if isinstance(value, float | int) and abs(value) < 1e300 and rng.random() < 0.3:
        return value * rng.choice([-1, 1e-300, 1e300, 0.5, 3])
    return rng.choice(HOSTILE)


def _twice(text: str, rng: random.Random) -> str:
    """Give a key twice."""
    at = [i for i, letter in enumerate(text) if letter == "{"]
    if not at:
        return text
    place = rng.choice(at) + 1
    return text[:place] + '"name": 1, "name": 2' + ("" if text[place] == "}" else ", ") + text[place:]


def _stored(content: bytes, rng: random.Random) -> bytes:
    """Change a value in a table of a store."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.db"
        path.write_bytes(content)
        connection = sqlite3.connect(path)
        with connection:
            table = rng.choice(["plan", "results", "results", "attacks"])
            columns = [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]
            rows = [number for (number,) in connection.execute(f"SELECT rowid FROM {table}")]
            column, value = rng.choice(columns), rng.choice(HOSTILE)
            before = connection.execute(f"SELECT {column} FROM {table} LIMIT 1").fetchone() or ("",)
            if column in ("evidence", "spec", "domain") and rng.random() < 0.7:
                value = (
                    json.dumps(_value(json.loads(before[0]), rng))
                    .encode("utf-8", "surrogatepass")
                    .decode("utf-8", "replace")
                )
            elif isinstance(value, dict | list) or (isinstance(value, int) and abs(value) >= 2**63):
                value = str(value)[:100]
            elif isinstance(value, str):
                value = value.encode("utf-8", "replace").decode()
            with contextlib.suppress(sqlite3.Error):  # some columns take no NULL
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, rng.choice(rows or [1])))
        connection.close()
        return path.read_bytes()


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise `Hang` after `LONGEST` seconds."""

    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tried(name: str, content: bytes, rng: random.Random) -> tuple[str, int]:
    """Read one damaged file; return what is wrong, if something is, and the exit code."""
    from certbench.exit_codes import ExitCode
    from tests.support.nasty import hidden

    reader = READERS[name]
    Path(reader.file).write_bytes(content)
    command = rng.choice(reader.commands)
    try:
        with limited():
            code, out, err = called(command)
    except Hang:
        return f"{command} hangs", -1
    if code == ExitCode.INTERNAL or code not in {*ExitCode} or "Traceback" in out + err:
        return f"{command} ends with {code}: {err[-500:]}", code
    if code == ExitCode.VIOLATED and command[0] != "compare":
        return f"{command} says that a policy is violated", code
    if hidden(out + err):
        return f"{command} prints {hidden(out + err)}", code
    return "", code


def fuzz(names: Sequence[str], *, seed: int, count: int, until: float, wrong: Callable[[str], None]) -> Counter[str]:
    """Try damaged files of each kind; the valid ones lie in the current folder.

    Args:
        names: kinds of files.
        seed: seed of the mutations.
        count: number of files of each kind.
        until: time at which no new file is begun.
        wrong: function that is told what is wrong.
    """
    counts: Counter[str] = Counter()
    valid = {name: Path(READERS[name].file).read_bytes() for name in names}
    for number in range(count):
        for name in names:
            if time.monotonic() > until:
                return counts
            rng = random.Random(f"{seed} {name} {number}")
            content = mutated(READERS[name].values, valid[name], rng)
            said, code = tried(name, content, rng)
            counts[f"{name}: exit {code}"] += 1
            if said:
                wrong(f"{name}, seed {seed}, number {number}: {said}")
            Path(READERS[name].file).write_bytes(valid[name])
            clear()
    return counts


def main() -> int:
    """Fuzz all readers, or the one that is named, for some time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[*READERS])
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: list[str] = []

    def wrong(text: str) -> None:
        found.append(text)
        print(text, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.path.append(folder)
        os.environ["COLUMNS"] = "200"
        prepare()
        names = [given.only] if given.only else [*READERS]
        until = time.monotonic() + given.seconds
        counts = fuzz(names, seed=given.seed, count=10**9, until=until, wrong=wrong)
        os.chdir("/")
    for name, count in sorted(counts.items()):
        print(f"{count:7d} {name}")
    print(f"{sum(counts.values())} files, {len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
