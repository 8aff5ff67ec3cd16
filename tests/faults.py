"""The campaign `make faults`: each run is disturbed at a random time, resumed, and held to the undisturbed one.

    python -m tests.faults [--number 100] [--first 0] [--seed 0] [--log FILE]

A fault is a kill of a worker, of all workers, of the server that they are forked from or of the run itself; Ctrl-C once
or twice; SIGTERM; a file system that takes no more; a second run into the same folder; a certifier that misbehaves;
and, where Ray is installed, a kill of a node, of an actor or of the run on a cluster of two nodes. It is right if,
after one more run, every row and counterexample is equal to the undisturbed one, to the last bit, none is lost, none is
there that was not asked for, and no pair but that of the guilty certifier was ever blamed.

What is disturbed depends on the seed and the number of the injection alone. Injections that a log has are not done
again, and the table is that of the log: a campaign can be stopped, and done in parts. Kills are found in `/proc`, so
this needs Linux.
"""

import argparse
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from certbench.results.store import Store
from tests.support.forked_runs import Started, started
from tests.support.ray_cluster import Nodes, children, command

SUITE: dict[str, Any] = {
    "name": "faults", "data": "digits", "inputs": 12, "models": ["linear", "mlp-ibp"], "norms": [2], "batch": 4,
    "certifiers": ["lipschitz", "crown", {"name": "smoothing", "n": 2000}, {"name": "alpha-crown", "iterations": 2}],
    "search": {"name": "ladder", "eps": [0.05, 0.1, 0.2]}, "attacks": {"steps": 3}, "workers": 2,
    "limits": {"seconds": 60, "input_seconds": 20, "memory": "2 GB"},
}  # fmt: skip

ROWS, GUILTY = 12 * 2 * 4, 12 * 2
"""Number of rows of the suite, and of those that another certifier has."""

DEEDS = (
    "segfault", "abort", "os._exit", "sys.exit", "base", "allocates", "halves", "hooks", "trains", "dtype", "threads",
    "gradients", "patches", "endless", "endless in C",
)  # fmt: skip

TRIES = 5
"""Number of runs that may end before they are disturbed."""


Content = dict[tuple[Any, ...], Any]


def content(folder: Path) -> Content:
    """Return all that is stored but times: rows, their counterexamples, and the number of answers to no question."""
    path = folder / "results.db"
    if not path.exists() or path.stat().st_size == 0:  # killed before anything was written
        return {}
    store = Store(path, create=False)
    try:
        rows = store.keyed_rows()
        found: Content = {("row", row.model, row.certifier, row.input): (
            row.prediction, row.radius.hex(), row.outcome.value, row.reason, str(row.evidence)
        ) for row, _, _ in rows}  # fmt: skip
        found |= {("upper", row.model, row.certifier, row.input): row.upper.hex() for row, _, _ in rows}
        found |= {("point", key): value for key, value in store.counterexamples().items()}
        known = {key for _, key, _ in rows}
        return found | {("stray",): sum(key not in known for key in store.outcomes())}
    finally:
        store.close()


def guilty(key: tuple[Any, ...]) -> bool:
    """Say whether a row is one of the certifier that misbehaves."""
    return len(key) > 2 and "misbehaving" in key[2]


def differences(truth: Content, found: Content, *, whole: bool) -> list[str]:
    """Return what is not as it should be; a run that goes on may lack rows, and attacks may follow rows."""
    innocent = {key: value for key, value in found.items() if not guilty(key)}
    wrong = [f"{key}: {value} for {truth.get(key)}" for key, value in innocent.items()
             if truth.get(key) != value and (whole or key[0] != "upper")]  # fmt: skip
    return wrong + [f"{key} is lost" for key in truth if whole and key not in innocent]


def spared(deed: str, found: Content) -> list[str]:
    """Return the rows of a certifier that misbehaves which are lost, or do not say so; a patch cannot be seen."""
    ends = [value[2] for key, value in found.items() if key[0] == "row" and guilty(key)]
    right = {"completed"} if deed == "patches" else {"failed", "timed out", "out of memory"}
    lost = [] if len(ends) == GUILTY else [f"{GUILTY - len(ends)} guilty rows are lost"]
    return lost + [f"a guilty row is {end}" for end in ends if end not in right]


Fault = Callable[[Started, random.Random, "Nodes | None"], bool]
"""Disturbs a run; says whether there was anything to disturb."""


def server(one: Started) -> list[int]:
    """Return the server of workers of a run."""
    return [child for child in children(one.pid) if "resource_tracker" not in command(child)]


def killed(pids: list[int]) -> bool:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(pids)


def workers(one: Started) -> list[int]:
    """Return the workers of a run."""
    return [worker for parent in server(one) for worker in children(parent)]


def one_worker(one: Started, chance: random.Random, nodes: Nodes | None) -> bool:
    there = workers(one)
    return killed([chance.choice(there)] if there else [])


def all_workers(one: Started, chance: random.Random, nodes: Nodes | None) -> bool:
    return killed(workers(one))


def its_server(one: Started, chance: random.Random, nodes: Nodes | None) -> bool:
    return killed(server(one))


def driver(one: Started, chance: random.Random, nodes: Nodes | None) -> bool:
    return killed([one.pid])


def ctrl_c(one: Started, chance: random.Random, nodes: Nodes | None) -> bool:
    os.kill(one.pid, signal.SIGINT)
    return True


def ctrl_c_twice(one: Started, chance: random.Random, nodes: Nodes | None) -> bool:
    ctrl_c(one, chance, nodes)
    time.sleep(chance.uniform(0, 0.2))
    if one.running():
        ctrl_c(one, chance, nodes)
    return True


def terminate(one: Started, chance: random.Random, nodes: Nodes | None) -> bool:
    os.kill(one.pid, signal.SIGTERM)
    return True


def ray_actor(one: Started, chance: random.Random, nodes: Nodes | None) -> bool:
    assert nodes is not None
    there = nodes.actors()
    return killed([chance.choice(there)[1]] if there else [])


def ray_node(one: Started, chance: random.Random, nodes: Nodes | None) -> bool:
    assert nodes is not None
    there = nodes.actors()
    if not there:
        return False
    node, _ = chance.choice(there)
    return killed([node, *children(node)])


FAULTS: dict[str, Fault] = {
    "SIGKILL of a worker": one_worker,
    "SIGKILL of all workers": all_workers,
    "SIGKILL of the server": its_server,
    "SIGKILL of the run": driver,
    "Ctrl-C": ctrl_c,
    "Ctrl-C, twice": ctrl_c_twice,
    "SIGTERM": terminate,
}

RAY: dict[str, Fault] = {
    "Ray: SIGKILL of a node": ray_node,
    "Ray: SIGKILL of a worker": ray_actor,
    "Ray: SIGKILL of the run": driver,
}

RAY_CERTIFIER = "Ray: a certifier that misbehaves"

OTHERS = ["no more space", "two runs at once", *(f"certifier: {deed}" for deed in DEEDS)]


def on(nodes: Nodes | None) -> dict[str, Any]:
    """Return how a run computes on a cluster."""
    return {"executor": "ray", "address": nodes.address, "workers": 1} if nodes else {}


def disturbed(kind: str, folder: Path, usual: float, chance: random.Random, nodes: Nodes | None) -> list[str]:
    """Run the suite, disturb the run at some time, and return what it said."""
    options = on(nodes)
    for _ in range(TRIES):
        one, hit = started(SUITE, folder, **options), False
        time.sleep(chance.uniform(0, 0.9) * usual)
        while one.running() and not hit:
            hit = {**FAULTS, **RAY}[kind](one, chance, nodes)
            time.sleep(0 if hit else 0.02)
        said = one.finished()
        if hit:
            return [said]
        shutil.rmtree(folder)
        usual /= 2
    return ["HANGS never: it was not disturbed, as it ended too early"]


def twice(folder: Path, usual: float, chance: random.Random) -> list[str]:
    """Start a run while another one writes the folder, which may be killed meanwhile."""
    first = started(SUITE, folder)
    time.sleep(usual * chance.random() ** 2)
    second = started(SUITE, folder)
    if chance.random() < 0.5:
        time.sleep(usual * chance.random() / 2)
        if first.running():
            killed([first.pid])
    said = [one.finished() for one in (first, second)]
    refused = [text for text in said if "is being written by another run" in text]
    return [text for text in said if text and text not in refused] + ["Traceback: both were refused"] * (
        len(refused) == 2
    )


def inject(kind: str, folder: Path, usual: float, chance: random.Random, truth: Content, nodes: Nodes | None) -> str:
    """Disturb a run, resume it, and return what is wrong; nothing if all is right."""
    suite, again, deed = SUITE, chance.choice(["process", "inline"]), ""
    if kind.startswith("certifier") or kind == RAY_CERTIFIER:
        deed = chance.choice(DEEDS) if kind == RAY_CERTIFIER else kind.split(": ")[1]
        certifier = {"name": "misbehaving", "deed": deed, "preparing": chance.random() < 0.3}
        certifiers = [*SUITE["certifiers"]]
        certifiers.insert(chance.randrange(len(certifiers) + 1), certifier)
        limits = {**SUITE["limits"], "input_seconds": 3, "prepare_seconds": 20}
        limits |= {"seconds": 6} if "endless" in deed else {}
        suite, again = {**SUITE, "certifiers": certifiers, "limits": limits}, "process"
        said = [started(suite, folder, **on(nodes if kind == RAY_CERTIFIER else None)).finished()]
    elif kind == "no more space":
        said = [started(suite, folder, chance.randrange(20_000, 150_000)).finished()]
    elif kind == "two runs at once":
        said = twice(folder, usual, chance)
    else:
        said = disturbed(kind, folder, usual, chance, nodes if kind in RAY else None)
    between = content(folder / "run")
    said.append(started(suite, folder, executor=again).finished())
    after = content(folder / "run")
    wrong = differences(truth, between, whole=False) + differences(truth, after, whole=True)
    wrong += [text for found in (between, after) for text in spared(deed, found)] if deed else []
    wrong += [f"said: {text[-300:]}" for text in said if "Traceback" in text or "HANGS" in text]
    wrong += [f"the second run said: {said[-1][-300:]}"] if said[-1] else []
    return "; ".join(wrong[:3])


def undisturbed(place: Path) -> tuple[float, Content]:
    """Return how long a run takes, and what is stored then."""
    start = time.monotonic()
    said = started(SUITE, place).finished()
    seconds, truth = time.monotonic() - start, content(place / "run")
    ends = {value[2] for key, value in truth.items() if key[0] == "row"}
    if said or sum(key[0] == "row" for key in truth) != ROWS or ends - {"completed", "abstained", "limited"}:
        sys.exit(f"the undisturbed run is not complete: {said} {ends}")
    return seconds, truth


def campaign(number: int, first: int, seed: int, log: Path, kinds: list[str], place: Path, nodes: Nodes | None) -> None:
    """Inject faults, one after the other, and write each to the log."""
    usual, truth = undisturbed(place / "undisturbed")
    on_ray = usual
    if nodes is not None:
        start = time.monotonic()
        said = started(SUITE, place / "ray", executor="ray", address=nodes.address, workers=1).finished()
        on_ray = time.monotonic() - start
        wrong = differences(truth, content(place / "ray" / "run"), whole=True)
        if said or wrong:
            sys.exit(f"the undisturbed run on Ray is another one: {said} {wrong[:3]}")
    print(f"undisturbed: {usual:.1f} s" + (f", on Ray {on_ray:.1f} s" if nodes else ""), flush=True)
    done = {entry["number"] for entry in logged(log) if entry["seed"] == seed}
    for i in range(first, first + number):
        if i in done:
            continue
        kind, chance, start = kinds[i % len(kinds)], random.Random(f"{seed} {i}"), time.monotonic()
        wrong_here = inject(kind, place / str(i), on_ray if kind in RAY else usual, chance, truth, nodes)
        seconds = round(time.monotonic() - start, 1)
        entry = {"seed": seed, "number": i, "kind": kind, "wrong": wrong_here, "seconds": seconds}
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        print(f"{i:4} {kind}: {wrong_here or 'right'} ({seconds} s)", flush=True)
        if not wrong_here:
            shutil.rmtree(place / str(i))
        if nodes is not None and kind in RAY:
            nodes.mend()


def logged(log: Path) -> list[dict[str, Any]]:
    """Return what was injected."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def main() -> None:
    """Inject faults, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=100, help="number of injections")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="file of injections that were done; a new one by default")
    parser.add_argument("--only", default="", help="words that a kind must have")
    given = parser.parse_args()
    ray = importlib.util.find_spec("ray") is not None
    kinds = [kind for kind in [*FAULTS, *([*RAY, RAY_CERTIFIER] if ray else []), *OTHERS] if given.only in kind]
    with ExitStack() as ending:
        place = Path(ending.enter_context(tempfile.TemporaryDirectory()))
        nodes = Nodes() if any(kind.startswith("Ray") for kind in kinds) else None
        if nodes is not None:
            ending.callback(nodes.close)
        log = given.log or place / "log"
        campaign(given.number, given.first, given.seed, log, kinds, place, nodes)
        entries = logged(log)
    print("\n| fault | injected | right |\n| --- | --- | --- |")
    for kind in dict.fromkeys(entry["kind"] for entry in entries):
        ends = [not entry["wrong"] for entry in entries if entry["kind"] == kind]
        print(f"| {kind} | {len(ends)} | {sum(ends)} |")
    print(f"| all | {len(entries)} | {sum(not entry['wrong'] for entry in entries)} |")
    if not ray:
        print("\nRay is not installed: nothing was injected on a cluster.")
    sys.exit(1 if any(entry["wrong"] for entry in entries) else 0)


if __name__ == "__main__":
    main()
