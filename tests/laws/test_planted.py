"""Certifiers that are wrong on purpose, one of each kind, and which of the referees tells.

`attack` and `cross` are halves of `certbench audit` (its attacks, and rows held against a complete certifier's); `law`
is the closed form of the contract suite, which every certifier of the table has to keep; `check` is the independent
checker, which refuses the file that the certifier would write.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from certbench.auditing import audit, base_classifiers
from certbench.core import registry
from certbench.core.certificate import Certificate
from certbench.core.certifier import Certifier, MarginCertifier
from certbench.core.claims import Guarantee
from certbench.core.classifier import Classifier
from certbench.core.margins import Bounds, MarginState
from certbench.core.search import RadiusSearch, Secant
from certbench.core.threat import ThreatModel
from certbench.errors import CertbenchError
from certbench.export.exporter import Exporter
from certbench.results.store import Store
from certbench.runs import reopen
from certbench.runs import run as benchmark
from certbench.runs.suite import load
from certbench.verifiers.lipschitz.margin import GlobalLipschitz
from certbench.verifiers.smoothing.smoothing import Smoothing
from tests.support.runs import Watcher

pytestmark = pytest.mark.machine

D, SHAPE = 6, (3, 6)


def linear() -> nn.Module:
    """A linear classifier in two steps, so that its constant is a product of two norms."""
    return nn.Sequential(nn.Linear(D, D), nn.Linear(D, 3))


def stretched(factor: float = 1.0) -> dict[str, Tensor]:
    """Weights for which the product of norms is all but exact, and power iteration slow."""
    outer = torch.zeros(SHAPE)
    outer[0, 0], outer[1, 0], outer[2, 1] = 1.0, -1.0, 0.6
    return {
        "0.weight": factor * torch.diag(torch.tensor([1.0, 0.97, 0.95, 0.93, 0.9, 0.85])),
        "0.bias": torch.zeros(D),
        "1.weight": outer,
        "1.bias": torch.tensor([-0.5, 0.5, 0.0]),
    }


def exact_radius(classifier: Classifier, x: Tensor, threat: ThreatModel) -> Tensor:
    """The distance to the closest boundary of the linear classifier."""
    first, last = classifier.double().module
    weight, logits = last.weight @ first.weight, classifier.double()(x)
    top = logits.argmax(dim=1)
    length = torch.linalg.vector_norm(weight[top][:, None] - weight, ord=threat.q, dim=-1)
    return ((logits.gather(1, top[:, None]) - logits) / length).nan_to_num(math.inf).amin(dim=1)


@dataclass(frozen=True)
class PowerIteration(GlobalLipschitz):
    """A step of power iteration in place of a norm."""

    rounding_safe: bool = False
    search: RadiusSearch = field(default_factory=Secant)
    guarantee: ClassVar[Guarantee] = Guarantee.SOUND
    norms: ClassVar[frozenset[float]] = frozenset({2.0})

    def constants(
        self, classifier: Classifier, threat: ThreatModel
    ) -> tuple[Float[Tensor, "rows rows"], Mapping[str, Any]]:
        first, last = classifier.double().module
        step = torch.randn(D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        step = first.weight.mT @ (first.weight @ step)
        norm = (first.weight @ (step / step.norm())).norm()
        rows = torch.cat([last.weight, torch.zeros_like(last.weight[:1])])
        return norm * torch.linalg.vector_norm(rows[:, None] - rows, dim=-1), {"norm": float(norm)}

    def witness(self, state: Any, x: Tensor, label: Tensor, eps: Tensor) -> dict[str, Any]:
        return {"kind": "lipschitz", "spectral": [state.facts["norm"]], "box": [], "multipliers": [None, None]}


@dataclass(frozen=True)
class WrongSign(MarginCertifier[MarginState]):
    """The margin over the last class grows with the ball."""

    search: RadiusSearch = field(default_factory=Secant)
    guarantee: ClassVar[Guarantee] = Guarantee.SOUND
    norms: ClassVar[frozenset[float]] = frozenset({2.0})

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> MarginState:
        return MarginState(classifier.double(), threat)

    def lower(
        self,
        state: MarginState,
        x: Float[Tensor, "n ..."],
        rows: Float[Tensor, "n k outputs"],
        eps: Float[Tensor, " n"],
    ) -> Bounds:
        first, last = state.classifier.module
        fall = torch.linalg.vector_norm(rows @ (last.weight @ first.weight), dim=-1) * eps[:, None]
        fall[:, -1] *= -1
        return Bounds((rows @ state.classifier(x)[..., None]).squeeze(-1) - fall)


@dataclass(frozen=True)
class Primal(MarginCertifier[MarginState]):
    """The smallest margin among some points of the ball: the value of a program that was not solved to its end."""

    search: RadiusSearch = field(default_factory=Secant)
    guarantee: ClassVar[Guarantee] = Guarantee.SOUND
    norms: ClassVar[frozenset[float]] = frozenset({2.0})

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> MarginState:
        return MarginState(classifier.double(), threat)

    def lower(
        self,
        state: MarginState,
        x: Float[Tensor, "n ..."],
        rows: Float[Tensor, "n k outputs"],
        eps: Float[Tensor, " n"],
    ) -> Bounds:
        steps = torch.randn(50, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        points = x[:, None] + eps[:, None, None] * steps / steps.norm(dim=1, keepdim=True)
        logits = state.classifier(points.flatten(0, 1)).view(len(x), 50, -1)
        return Bounds((logits @ rows.mT).amin(dim=1))


@dataclass(frozen=True)
class NoConfidence(Smoothing):
    """Smoothing by shares instead of confidence bounds."""

    def probabilities(self, top: int, estimation: Sequence[int], n: int) -> tuple[float, float]:
        share = min(estimation[top] / n, 1 - 1e-9)
        return share, 1 - share


REMEMBERED: dict[tuple[str, bytes], float] = {}


@dataclass(frozen=True)
class StaleCache(Certifier[MarginState]):
    """Exact, and remembered by the classifier's name."""

    guarantee: ClassVar[Guarantee] = Guarantee.SOUND
    norms: ClassVar[frozenset[float]] = frozenset({2.0})

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> MarginState:
        return MarginState(classifier, threat)

    def certify(self, state: MarginState, x: Float[Tensor, "n ..."], seeds: Sequence[int]) -> Certificate:
        keys = [(state.classifier.name, row.numpy().tobytes()) for row in x]
        exact = exact_radius(state.classifier, x, state.threat) * (1 - 1e-9)
        radius = [REMEMBERED.setdefault(key, float(found)) for key, found in zip(keys, exact, strict=True)]
        return Certificate.of(state.classifier(x).argmax(dim=1), torch.tensor(radius, dtype=torch.float64))


class Readers(nn.Module):
    """Class 0 where all numbers can be one of the known inputs plus float32 noise, else 1 (Voráček and Hein, 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("known", torch.zeros(4, 784))

    def forward(self, z: Tensor) -> Tensor:
        noise = z[:, None] - self.known
        reached = ((self.known + noise) == z[:, None]) & (noise.abs() < 2.0)
        share = reached.double().mean(dim=2).amax(dim=1)
        return torch.stack([share, torch.full_like(share, 1 - 1e-9)], dim=1).float()


class Bench:
    """A suite of one model, its run, and what the referees say of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run_folder = folder, folder / "run"
        self.x = torch.rand(10, D, generator=torch.Generator().manual_seed(0))
        self.model, self.classes, self.weights = "linear", 3, stretched()

    def run(self, *certifiers: Any, norms: Sequence[Any] = (2,)) -> None:
        safetensors.torch.save_file(self.weights, self.folder / "w.safetensors")
        np.savez(self.folder / "points.npz", inputs=self.x.numpy(), labels=np.arange(len(self.x)) % self.classes)
        suite = {
            "name": "planted",
            "data": str(self.folder / "points.npz"),
            "inputs": len(self.x),
            "models": [
                {"name": "m", "factory": f"{__name__}:{self.model}", "weights": str(self.folder / "w.safetensors")}
            ],
            "norms": list(norms),
            "certifiers": list(certifiers),
            "attacks": {"steps": 0},
        }
        (self.folder / "suite.yaml").write_text(json.dumps(suite), encoding="utf-8")
        benchmark.run(load(str(self.folder / "suite.yaml")), self.run_folder, Watcher(), executor="inline")

    def told(self, name: str) -> set[str]:
        """Which referees find the rows of this certifier wrong."""
        audit.audit(self.run_folder, steps=10, seconds=100)
        record = json.loads((self.run_folder / "audit.json").read_text())
        found = set()
        if any(part["certifier"].startswith(name) for part in record["refuted"]):
            found.add("attack")
        if any(part["unsound"] and part["certifier"].startswith(name) for part in record["smoothed"]):
            found.add("attack")
        if any(
            part["unsound"] and part["certifier"].startswith(name) and part["other"]["certifier"] == "branch-and-bound"
            for part in record["cross-audit"]
        ):
            found.add("cross")
        opened = reopen.reopen(self.run_folder)
        classifier, entries = opened.models["m"], [e for e in opened.entries if e.row.certifier.startswith(name)]
        if self.model == "linear" and entries[0].row.subject.value == "base":
            exact = exact_radius(classifier, opened.inputs, entries[0].threat)
            if any(entry.row.radius > exact[entry.row.input] * (1 + 1e-6) for entry in entries):
                found.add("law")
        certifier = opened.certifier(entries[0])
        state = certifier.prepare(classifier, entries[0].threat)
        for entry in entries:
            try:
                if entry.row.radius > 0:
                    Exporter(classifier, self.folder).write(certifier, state, entry.row, opened.inputs[entry.row.input])
            except CertbenchError as error:
                found |= {"check"} if "does not prove the claim" in str(error) else set()
        return found


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for kind in (PowerIteration, WrongSign, Primal, NoConfidence, StaleCache):
        monkeypatch.setitem(registry.table(), kind.__name__.lower(), f"{__name__}:{kind.__name__}")
    monkeypatch.setattr(base_classifiers, "ROUNDS", 2)
    return Bench(tmp_path)


SMOOTHING = {"n": 1000, "n0": 50, "noise": {"name": "gaussian", "sigma": 0.25}}


@pytest.mark.parametrize("sound", ["lipschitz", "crown", "branch-and-bound"])
def test_what_is_right_is_left_alone(bench: Bench, sound: str) -> None:
    bench.run("lipschitz", "crown", "branch-and-bound")
    assert bench.told(sound) == set()


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        ("poweriteration", {"attack", "cross", "law", "check"}),
        ("wrongsign", {"attack", "cross", "law"}),
        ("primal", {"attack", "cross", "law"}),
    ],
)
def test_an_estimate_a_sign_and_a_primal_value_are_no_bounds(bench: Bench, plant: str, told: set[str]) -> None:
    bench.run(plant, "branch-and-bound")
    assert bench.told(plant) == told


def test_an_answer_that_was_remembered_for_another_model_is_found(bench: Bench) -> None:
    REMEMBERED.clear()
    bench.run("stalecache", "branch-and-bound")
    assert bench.told("stalecache") == set()
    bench.weights = stretched(1.5)
    bench.run("stalecache", "branch-and-bound")
    assert bench.told("stalecache") == {"attack", "cross", "law"}


def test_a_probability_without_its_confidence_is_refused_by_the_checker(bench: Bench) -> None:
    bench.run({"name": "noconfidence", **SMOOTHING}, {"name": "smoothing", **SMOOTHING})
    assert bench.told("smoothing") == set()
    assert "check" in bench.told("noconfidence")


def test_a_classifier_that_reads_the_rounding_of_float_noise_is_found_out(bench: Bench) -> None:
    levels = torch.randint(40, 216, (4, 784), generator=torch.Generator().manual_seed(0))
    bench.x = (levels.double() / 255).float()
    bench.model, bench.classes, bench.weights = "Readers", 2, {"known": bench.x}
    sound = {**SMOOTHING, "noise": {"name": "integer-gaussian", "sigma": 0.25}}
    bench.run({"name": "smoothing", **SMOOTHING}, {"name": "smoothing", **sound})
    store = Store(bench.run_folder / "results.db")
    rows = store.rows()
    store.close()
    ordinary, integer = ([row for row in rows if ("integer" in row.certifier) == wanted] for wanted in (False, True))
    assert all(row.prediction == 0 and row.radius > 0.3 for row in ordinary)
    assert "attack" in bench.told(ordinary[0].certifier)
    assert "attack" not in bench.told(integer[0].certifier)
