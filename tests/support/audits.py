"""A run of three inputs with certifiers that overclaim, to be audited."""

import json
import math
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from certbench.auditing import audit
from certbench.auditing.output import told
from certbench.core.certificate import Certificate
from certbench.core.certifier import Certifier
from certbench.core.claims import Guarantee
from certbench.core.classifier import Classifier
from certbench.core.threat import ThreatModel
from certbench.runs import run as benchmark
from certbench.runs.suite import load
from certbench.verifiers.smoothing.smoothing import Smoothing, SmoothingState
from tests.support.runs import Watcher
from tests.support.terminal import text_of


class Linear(nn.Sequential):
    """Three classes of six numbers."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 3))


def make() -> nn.Module:
    return Linear()


@dataclass(frozen=True)
class Scaled(Certifier[Classifier]):
    """A multiple of the exact radius of a linear classifier."""

    factor: float = 1.0
    shift: int = 0

    guarantee = Guarantee.SOUND
    norms = frozenset({1.0, 2.0, math.inf})

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> tuple[Classifier, ThreatModel]:
        return classifier.double(), threat

    def certify(self, state: tuple[Classifier, ThreatModel], x: Tensor, seeds: Sequence[int]) -> Certificate:
        exact, threat = state
        linear: Any = exact.module[0]  # type: ignore[index]
        logits = exact(x)
        top = logits.argmax(dim=1)
        gap = logits.gather(1, top[:, None]) - logits
        length = torch.linalg.vector_norm(linear.weight[top][:, None] - linear.weight, ord=threat.q, dim=-1)
        radius = (gap / length).nan_to_num(math.inf).amin(dim=1)
        return Certificate.of((top + self.shift) % 3, self.factor * radius * (1 - 1e-9))


@dataclass(frozen=True)
class Overclaiming(Smoothing):
    """Smoothing without confidence, and twice the radius."""

    def certify(self, state: SmoothingState, x: Tensor, seeds: Sequence[int]) -> Certificate:
        found = super().certify(state, x, seeds)
        return replace(found, radius=2 * found.radius)


SMOOTHING = {"n": 1000, "alpha": 0.01, "noise": {"name": "gaussian", "sigma": 0.5}}


class Bench:
    """A suite on a linear classifier, its run and its audit."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run_folder = folder, folder / "run"
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(10, 6, generator=generator)
        self.weight = torch.randn(3, 6, generator=generator)
        self.weights(self.weight)
        labels = (x @ self.weight.T).argmax(dim=1)
        labels[0] = (labels[0] + 1) % 3  # a mistake is certified, too
        np.savez(folder / "points.npz", inputs=x.numpy(), labels=labels.numpy())

    def weights(self, weight: Tensor) -> None:
        safetensors.torch.save_file({"0.weight": weight, "0.bias": torch.zeros(3)}, self.folder / "w.safetensors")

    def run(self, *certifiers: Any, **changes: Any) -> None:
        suite = {
            "name": "little",
            "data": str(self.folder / "points.npz"),
            "inputs": 10,
            "models": [{"name": "plane", "factory": f"{__name__}:make", "weights": str(self.folder / "w.safetensors")}],
            "norms": [2, "inf"],
            "certifiers": list(certifiers),
            "attacks": {"steps": 0},
        }
        path = self.folder / "little.yaml"
        path.write_text(json.dumps({**suite, **changes}), encoding="utf-8")
        benchmark.run(load(str(path)), self.run_folder, Watcher(), executor="inline")

    def audit(self, **options: Any) -> tuple[int, dict[str, Any], str]:
        found = audit.audit(self.run_folder, **{"steps": 10, "seconds": 100, **options})
        return found.exit_code, json.loads(found.file.read_text()), text_of(told(found))


def change(bench: Bench, *statements: str) -> None:
    """Change what is stored, as nobody should."""
    with closing(sqlite3.connect(bench.run_folder / "results.db", isolation_level=None)) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount, statement


def of(certifier: str, more: str = "1") -> str:
    return f"WHERE key IN (SELECT key FROM plan WHERE certifier LIKE '{certifier}%' AND {more})"


def scaled(factor: float, **options: Any) -> dict[str, Any]:
    return {"name": "scaled", "factor": factor, **options}
