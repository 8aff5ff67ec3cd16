"""A little suite, a certifier with accidents, and who watches the run."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from certbench.core.certificate import Certificate
from certbench.core.certifier import Certifier
from certbench.core.claims import Guarantee, Outcome
from certbench.core.classifier import Classifier
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError, MissingBackendError, SolverError, UnsupportedError
from certbench.results.rows import Row
from certbench.results.store import Store
from certbench.runs import run as benchmark
from certbench.runs.run import Finished
from certbench.runs.suite import load

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
        self.texts: list[str] = []
        self.expected: list[float] = []

    def data(self, text: str) -> None:
        self.texts.append(text)

    def begin(self, total: int, done: int) -> None:
        self.total, self.done = total, done

    def now(self, text: str) -> None:
        self.steps.append(text)

    def advance(self, outcomes: Mapping[str, int]) -> None:
        self.counts.update(outcomes)

    def left(self, seconds: float | None) -> None:
        self.expected += [] if seconds is None else [seconds]

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
        self,
        *certifiers: Any,
        rerun: str = "errors",
        model: str = "plane",
        executor: str = "inline",
        workers: int | None = None,
        **changes: Any,
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
        return benchmark.run(
            load(str(path)), self.folder / "run", self.watcher, rerun=rerun, executor=executor, workers=workers
        )


def fake(**options: Any) -> dict[str, Any]:
    return {"name": "fake", **options}


def outcomes(rows: list[Row]) -> dict[str, set[Outcome]]:
    found: dict[str, set[Outcome]] = {}
    for row in rows:
        found.setdefault(row.certifier, set()).add(row.outcome)
    return found


SMOOTHING = {"name": "smoothing", "n": 100}

DIGITS = {
    "data": "digits", "inputs": 5, "models": ["linear", "mlp-ibp"], "norms": [2], "domain": [0, 1], "batch": 2,
    "attacks": {"steps": 2}, "clever": {"radius": {"2": 1.0}, "batches": 2, "samples": 3},
}  # fmt: skip
"""A suite of a network that is trained, with all that a run computes."""


def bits(row: Row) -> tuple[Any, ...]:
    """Return all of a row but the time that it took."""
    return (
        row.model, row.certifier, row.norm, row.input, row.prediction, row.radius.hex(), row.upper.hex(), row.outcome,
        row.reason, str(row.evidence),
    )  # fmt: skip


def points(bench: Bench) -> dict[str, tuple[str, bytes]]:
    store = Store(bench.folder / "run" / "results.db", create=False)
    try:
        return store.counterexamples()
    finally:
        store.close()
