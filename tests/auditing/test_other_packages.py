"""The audit holds for certifiers of other packages: attacked, bounded again, sampled and compared as ours are."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from certbench.auditing import base_classifiers
from certbench.core import registry
from tests.support.audits import Bench, change, of

PACKAGE = '''
"""Bounds of Acme. They are certbench's in nothing but the interface."""

import math
from dataclasses import dataclass, field

import torch

from certbench import (
    ABSTAIN, Bounds, Certificate, Certifier, Guarantee, MarginCertifier, MarginState, RadiusSearch, Secant,
    SmoothedClassifier, Subject,
)


@dataclass(frozen=True)
class Slopes(MarginCertifier):
    """Exact bounds of a linear classifier, if the factor is 1. It says nothing of itself."""

    factor: float = 1.0
    search: RadiusSearch = field(default_factory=Secant)
    guarantee = Guarantee.SOUND
    norms = frozenset({1.0, 2.0, math.inf})

    def prepare(self, classifier, threat):
        return MarginState(classifier.double(), threat)

    def lower(self, state, x, rows, eps):
        length = torch.linalg.vector_norm(rows @ state.classifier.module[0].weight, ord=state.threat.q, dim=-1)
        centre = (rows @ state.classifier(x)[..., None]).squeeze(-1)
        return Bounds.steep(centre, length / self.factor, eps)


@dataclass(frozen=True)
class Wavering(Slopes):
    """Bounds of an optimiser."""

    repeatable = False


@dataclass(frozen=True)
class Either(Certifier):
    """The better one of two."""

    first: Certifier = field(default_factory=Slopes)
    second: Certifier = field(default_factory=Slopes)
    guarantee = Guarantee.SOUND
    norms = frozenset({1.0, 2.0, math.inf})

    @property
    def members(self):
        return self.first, self.second

    def dominates(self, other):
        return "the better one of two is at least each" if other in self.members else None

    def prepare(self, classifier, threat):
        return [member.prepare(classifier, threat) for member in self.members]

    def certify(self, state, x, seeds):
        found = [member.certify(part, x, seeds) for member, part in zip(self.members, state)]
        radius = torch.maximum(found[0].radius, found[1].radius)
        return Certificate.of(found[0].prediction, radius)


@dataclass(frozen=True)
class Sampled(SmoothedClassifier):
    """The linear classifier under noise is itself; every draw counts for one in a hundred."""

    base: object
    alpha: float = 0.01
    shared: bool = False

    def predict(self, x, *, level, draws, seed):
        return self.base(x).argmax(dim=1)


@dataclass(frozen=True)
class Noisy(Certifier):
    """A smoothed classifier, of which certbench knows how to sample it, or not."""

    factor: float = 1.0
    hidden: bool = False
    guarantee = Guarantee.PROBABILISTIC
    subject = Subject.SMOOTHED
    norms = frozenset({1.0, 2.0, math.inf})

    def smoothed(self, classifier, threat):
        return None if self.hidden else Sampled(classifier.double())

    def prepare(self, classifier, threat):
        return Slopes(self.factor).prepare(classifier, threat)

    def certify(self, state, x, seeds):
        found = Slopes(self.factor).certify(state, x, seeds)
        return Certificate.of(found.prediction, found.radius)
'''


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    (tmp_path / "acme_bounds.py").write_text(PACKAGE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    for kind in ("Slopes", "Wavering", "Either", "Noisy"):
        monkeypatch.setitem(registry.table(), f"acme-{kind.lower()}", f"acme_bounds:{kind}")
    monkeypatch.setattr(base_classifiers, "ROUNDS", 2)
    yield Bench(tmp_path)
    sys.modules.pop("acme_bounds", None)


def test_its_bounds_are_computed_again(bench: Bench) -> None:
    slopes, wavering = ({"name": name, "factor": 0.5} for name in ("acme-slopes", "acme-wavering"))
    bench.run(slopes, wavering, {"name": "acme-either", "first": slopes, "second": wavering}, norms=[2])
    code, record, _ = bench.audit()
    assert (code, record["not proved"], record["not proved again"]) == (0, [], [])
    assert [part["proved"] for part in record["bounds"]] == [10, 10, 10]
    for name in ("acme-slopes", "acme-wavering", "acme-either"):
        change(bench, f"UPDATE results SET radius = 1.002 * radius {of(name, 'input < 2')}")
    code, record, text = bench.audit()
    assert (code, record["refuted"]) == (3, [])
    found = {
        key: sorted((part["certifier"].partition("(")[0], part["input"]) for part in record[key])
        for key in ("not proved", "not proved again")
    }
    assert found["not proved"] == [("acme-slopes", 0), ("acme-slopes", 1)]
    assert found["not proved again"] == [(f"acme-{name}", i) for name in ("either", "wavering") for i in (0, 1)]
    assert "UNSOUND: acme-slopes(factor=0.5) on plane, L2, input 0: its bounds do not prove the radius" in text


def test_bounds_that_are_wrong_are_refuted(bench: Bench) -> None:
    """They prove their radii each time; an attack and a complete certifier's answer tell."""
    bench.run({"name": "acme-slopes", "factor": 2.0}, "acme-slopes", "branch-and-bound", norms=["inf"])
    code, record, _ = bench.audit()
    assert code == 3
    assert {part["certifier"] for part in record["refuted"]} == {"acme-slopes(factor=2)"}
    assert len(record["refuted"]) == 10
    code, record, _ = bench.audit(seconds=0)  # the complete answer alone
    assert {part["certifier"] for part in record["cross-audit"]} == {"acme-slopes(factor=2)"}
    assert {part["other"]["certifier"] for part in record["cross-audit"]} == {"branch-and-bound"}


def test_its_orders_are_examined(bench: Bench) -> None:
    bench.run("acme-slopes", "acme-either", norms=[2])
    assert bench.audit()[0] == 0
    change(bench, f"UPDATE results SET radius = 0.5 * radius {of('acme-either', 'input = 3')}")
    code, record, _ = bench.audit()
    assert code == 1
    assert [part["law"] for part in record["cross-audit"]] == ["the better one of two is at least each"]


def test_its_smoothed_classifiers_are_attacked_where_they_can_be_sampled(bench: Bench) -> None:
    bench.run({"name": "acme-noisy", "factor": 2.0}, "acme-noisy", {"name": "acme-noisy", "hidden": True}, norms=[2])
    code, record, text = bench.audit()
    assert code == 3
    wrong, right = record["smoothed"]
    assert (wrong["refuted"], wrong["unsound"]) == (10, True)
    assert (right["refuted"], right["unsound"], right["alpha"]) == (0, False, 0.01)
    assert "acme-noisy has no PREDICT that can judge an attack" in record["not audited"][0]["reason"]
    assert "UNSOUND: acme-noisy(factor=2)" in text


class Wide(nn.Sequential):
    """Forty classes of six numbers."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 40))


def wide() -> nn.Module:
    """Rows that are nearly parallel: the constant of tsuzuku is nearly the root of 20 times that of naive."""
    module, generator = Wide(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        module[0].weight.copy_(torch.ones(40, 6) + 0.1 * torch.randn(40, 6, generator=generator))
        module[0].bias.zero_()
    return module


def test_a_sound_run_of_many_classes_passes(bench: Bench) -> None:
    """The audit once took naive <= tsuzuku for a theorem, and accused such a run of 60 contradictions."""
    safetensors.torch.save_file(dict(wide().state_dict()), bench.folder / "wide.safetensors")
    points = np.load(bench.folder / "points.npz")
    labels = np.append(points["labels"][:-1], 39)  # there are forty
    np.savez(bench.folder / "points.npz", inputs=points["inputs"], labels=labels)
    model = {"name": "wide", "factory": f"{__name__}:wide", "weights": str(bench.folder / "wide.safetensors")}
    rules = ("naive", "tsuzuku", "centred", "pairwise", "absolute", "best")
    bench.run(*({"name": "lipschitz", "rule": rule} for rule in rules), models=[model], norms=[1, 2, "inf"])
    code, record, _ = bench.audit()
    assert (code, record["cross-audit"], record["refuted"], record["not proved"]) == (0, [], [], [])
    mean = {(part["certifier"], part["norm"]): part["mean radius"] for part in record["base"]}
    assert mean["lipschitz(rule=naive)", 2.0] > 3 * mean["lipschitz(rule=tsuzuku)", 2.0] > 0
