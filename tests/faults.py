"""The campaign `make faults`: each run is disturbed at a random time, resumed, and held to the undisturbed one.

    python -m tests.faults [--number 100] [--seed 0]

A fault is a kill of a worker, of all workers, of the server that they are forked from or of the run itself; Ctrl-C once
or twice; SIGTERM; a file system that takes no more; or a certifier that misbehaves. It is right if every row of all
other certifiers is equal to the undisturbed one, to the last bit, after one more run, and if no other pair was ever
blamed. Kills are found in `/proc`, so this needs Linux.
"""

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from certbench.core import registry
from certbench.results.rows import Row
from certbench.results.store import Store

SUITE: dict[str, Any] = {
    "name": "faults", "data": "digits", "inputs": 12, "models": ["linear", "mlp-ibp"], "norms": [2], "batch": 4,
    "certifiers": ["lipschitz", "crown", {"name": "smoothing", "n": 2000}, {"name": "alpha-crown", "iterations": 2}],
    "search": {"name": "ladder", "eps": [0.05, 0.1, 0.2]}, "attacks": {"steps": 3}, "workers": 2,
    "limits": {"seconds": 60, "input_seconds": 20, "memory": "2 GB"},
}  # fmt: skip

DEEDS = (
    "segfault", "abort", "os._exit", "sys.exit", "base", "allocates", "halves", "hooks", "trains", "dtype", "threads",
    "gradients", "patches", "endless", "endless in C",
)  # fmt: skip


def compute(suite: Path, folder: Path) -> None:
    """Run the suite in this process; the misbehaving certifier has a name here."""
    from certbench.errors import CertbenchError
    from certbench.runs import run
    from certbench.runs.suite import load
    from tests.support.runs import Watcher

    registry.table()["misbehaving"] = "tests.runs.executors.misbehaving:Misbehaving"
    try:
        run.run(load(str(suite)), folder, Watcher())
    except KeyboardInterrupt:
        sys.exit(130)
    except CertbenchError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parts = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(parts[1]) == pid:
                found.append(int(entry.name))
    return found


def server(pid: int) -> list[int]:
    """Return the server of workers of a run."""
    return [one for one in children(pid) if b"forkserver" in Path(f"/proc/{one}/cmdline").read_bytes()]


def workers(pid: int) -> list[int]:
    """Return the workers of a run."""
    return [worker for one in server(pid) for worker in children(one)]


def one_worker(pid: int, chance: random.Random) -> None:
    there = workers(pid)
    if there:
        os.kill(chance.choice(there), signal.SIGKILL)


def all_workers(pid: int, chance: random.Random) -> None:
    for worker in workers(pid):
        os.kill(worker, signal.SIGKILL)


def its_server(pid: int, chance: random.Random) -> None:
    for one in server(pid):
        os.kill(one, signal.SIGKILL)


def driver(pid: int, chance: random.Random) -> None:
    os.kill(pid, signal.SIGKILL)


def ctrl_c(pid: int, chance: random.Random) -> None:
    os.kill(pid, signal.SIGINT)


def ctrl_c_twice(pid: int, chance: random.Random) -> None:
    ctrl_c(pid, chance)
    time.sleep(0.2)
    ctrl_c(pid, chance)


def terminate(pid: int, chance: random.Random) -> None:
    os.kill(pid, signal.SIGTERM)


FAULTS: dict[str, Callable[[int, random.Random], None]] = {
    "SIGKILL of a worker": one_worker,
    "SIGKILL of all workers": all_workers,
    "SIGKILL of the server": its_server,
    "SIGKILL of the run": driver,
    "Ctrl-C": ctrl_c,
    "Ctrl-C, twice": ctrl_c_twice,
    "SIGTERM": terminate,
}


def rows(folder: Path) -> dict[tuple[str, str, int], tuple[Any, ...]]:
    """Return all of the stored rows but the time that they took."""
    if not (folder / "results.db").exists():
        return {}
    store = Store(folder / "results.db", create=False)
    try:
        return {(row.model, row.certifier, row.input): _bits(row) for row in store.rows()}
    finally:
        store.close()


def _bits(row: Row) -> tuple[Any, ...]:
    return row.prediction, row.radius.hex(), row.upper.hex(), row.outcome.value, row.reason, str(row.evidence)


def started(suite: dict[str, Any], folder: Path, most: int | None = None) -> "subprocess.Popen[str]":
    """Start a run; it can write files of so many bytes."""
    folder.mkdir(exist_ok=True)
    path = folder / "suite.yaml"
    path.write_text(json.dumps(suite), encoding="utf-8")
    command = [sys.executable, "-m", "tests.faults", "--compute", str(path), str(folder / "run")]

    def limit() -> None:
        if most is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, preexec_fn=limit)


def finished(process: "subprocess.Popen[str]") -> str:
    """Wait for a run, and return what it said."""
    try:
        return process.communicate(timeout=300)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        return "HANGS: " + process.communicate()[1]


def inject(kind: str, folder: Path, usual: float, chance: random.Random, truth: dict[Any, Any]) -> str:
    """Disturb a run, resume it, and return what is wrong; nothing if all is right."""
    suite, most = SUITE, None
    if kind.startswith("certifier"):
        deed = {"name": "misbehaving", "deed": kind.split(": ")[1], "preparing": chance.random() < 0.3}
        certifiers = [*SUITE["certifiers"]]
        certifiers.insert(chance.randrange(len(certifiers) + 1), deed)
        limits = {**SUITE["limits"], "input_seconds": 3, "prepare_seconds": 20} | (
            {"seconds": 6} if "endless" in kind else {}
        )
        suite = {**SUITE, "certifiers": certifiers, "limits": limits}
    elif kind == "no more space":
        most = chance.randrange(20_000, 150_000)
    process = started(suite, folder, most)
    if kind in FAULTS:
        time.sleep(chance.uniform(0.3, 1.0) * usual)
        if process.poll() is None:
            FAULTS[kind](process.pid, chance)
    said = [finished(process)]
    between = rows(folder / "run") if most is None else {}
    again = started(suite, folder)
    said.append(finished(again))
    after = rows(folder / "run")
    innocent = {key: row for key, row in after.items() if "misbehaving" not in key[1]}
    wrong = [f"{key}: {innocent.get(key)} for {row}" for key, row in truth.items() if innocent.get(key) != row]
    wrong += [f"blamed: {key}: {row[3]} {row[4]}" for key, row in between.items()
              if "misbehaving" not in key[1] and truth.get(key) != row]  # fmt: skip
    wrong += [f"too many: {key}" for key in innocent if key not in truth]
    wrong += [f"said: {text[-300:]}" for text in said if "Traceback" in text or "HANGS" in text]
    return "; ".join(wrong[:3])


def main() -> None:
    """Inject faults, one after the other, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compute", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.compute:
        compute(*given.compute)
        return
    chance = random.Random(given.seed)
    kinds = [*FAULTS, "no more space", *(f"certifier: {deed}" for deed in DEEDS)]
    good, bad = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        start = time.monotonic()
        said = finished(started(SUITE, Path(place) / "undisturbed"))
        usual, truth = time.monotonic() - start, rows(Path(place) / "undisturbed" / "run")
        if (
            said
            or len(truth) != 12 * 2 * 4
            or {row[3] for row in truth.values()} - {"completed", "abstained", "limited"}
        ):
            sys.exit(f"the undisturbed run is not complete: {said} {Counter(row[3] for row in truth.values())}")
        for number in range(given.number):
            kind = kinds[number % len(kinds)]
            wrong = inject(kind, Path(place) / str(number), usual, chance, truth)
            (bad if wrong else good)[kind] += 1
            print(f"{number + 1:4} {kind}: {wrong or 'right'}", flush=True)
    print("\n| fault | injected | right |\n| --- | --- | --- |")
    for kind in kinds:
        print(f"| {kind} | {good[kind] + bad[kind]} | {good[kind]} |")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
