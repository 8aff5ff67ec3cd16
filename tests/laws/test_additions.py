"""What the table in CONTRIBUTING names is enough to add something: each test adds one and uses it from outside."""

import dataclasses
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

import certbench
from certbench import L1, L2, Classifier, formats
from certbench.attacks import battery
from certbench.attacks.counterexamples import Hunt
from certbench.core import options
from certbench.models import data, zoo
from certbench.models.data import Dataset
from certbench.models.recipes import base
from certbench.models.recipes.base import Objective
from certbench.models.training import Recipe
from certbench.networks import operators
from certbench.networks.curves import Exp
from certbench.networks.operators.builder import Builder, Moving
from certbench.report import tables
from certbench.results.metrics import summarise
from certbench.verifiers.smoothing.noise import NOISES, Noise
from certbench.verifiers.smoothing.noise.families import Gaussian
from tests.support.runs import Bench


class Narrow(Gaussian):
    """Gaussian noise of half the scale that it is asked for."""

    def draw(self, stream: object, n: int, d: int) -> Float[Tensor, "n d"]:
        return super().draw(stream, n, d) / 2  # type: ignore[arg-type]

    def direct(self, p_lower: float, p_upper: float, d: int) -> Mapping[float, float]:
        return {p: radius / 2 for p, radius in super().direct(p_lower, p_upper, d).items()}


def test_a_noise_is_a_class_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(options.FAMILIES, Noise, {**NOISES, "narrow": Narrow})
    spec = {"name": "smoothing", "n": 1000, "noise": {"name": "narrow", "sigma": 0.5}}
    built = options.build(spec)
    assert options.describe(built)["noise"] == {"name": "narrow", "sigma": 0.5}
    module = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    classifier = Classifier(module.eval(), (2,), 2)
    x = torch.tensor([[0.2, 0.0]], dtype=torch.float64)
    radius = certbench.certify(built, classifier, x, L2).radius
    assert 0 < float(radius) <= 0.2  # the distance of the boundary


class Sinh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sinh(x)


def test_a_layer_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), Sinh(), nn.Linear(4, 2)).eval()
    classifier, x = Classifier(module, (3,), 2), torch.ones(1, 3, dtype=torch.float64)
    with pytest.raises(certbench.UnsupportedError, match="sinh"):
        certbench.certify("crown", classifier, x, L2)

    def sinh(build: Builder, args: tuple[Any, ...], options: dict[str, Any], shape: Any) -> Moving:
        del options, shape
        up, down = build.apply(Exp(), args[0]), build.apply(Exp(), build.scale(args[0], -1.0))
        return build.scale(build.difference(up, down), 0.5)

    monkeypatch.setattr(operators, "RULES", {**operators.RULES, torch.ops.aten.sinh: sinh})
    certificate = certbench.certify("crown", classifier, x, L2, attack=True)
    assert (certificate.radius > 0.01).all()


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 3))


def read_letters(split: str) -> Dataset:
    generator = torch.Generator().manual_seed(len(split))
    labels = torch.arange(120) % 3
    inputs = torch.rand(120, 1, 3, 3, generator=generator)
    inputs[torch.arange(120), 0, labels] += 1  # the row that is bright is the class
    return Dataset(f"letters/{split}", inputs, labels, 3)


def test_a_data_set_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(data.NAMED, "letters", read_letters)
    bench = Bench(tmp_path)
    save_file({"1.weight": torch.ones(3, 9), "1.bias": torch.arange(3.0)}, tmp_path / "w.safetensors")
    model = {"name": "net", "factory": f"{__name__}:net", "weights": str(tmp_path / "w.safetensors")}
    finished = bench.run("lipschitz", data="letters", models=[model])
    assert finished.manifest["data"]["name"] == "letters/test"
    assert [row.label for row in finished.rows] == [0, 1, 2]


@dataclass(frozen=True)
class Squares(Objective):
    """Squared error of the logits against one-hot labels."""

    weight: float = 1.0

    def loss(self, module: nn.Sequential, step: base.Step) -> Float[Tensor, ""]:
        wanted = functional.one_hot(step.y, 3).to(step.x)
        return self.weight * functional.mse_loss(module(step.x), wanted)


def test_a_training_recipe_is_a_class_and_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(data.NAMED, "letters", read_letters)
    entry = dataclasses.replace(zoo.TABLE["linear"], recipe=Recipe(Squares(), epochs=30, batch_size=20), data="letters")
    monkeypatch.setitem(zoo.TABLE, "letters-linear", entry)
    card = zoo.train("letters-linear", tmp_path)
    assert card["recipe"] == "Squared error of the logits against one-hot labels."
    assert card["accuracy"]["test"] > 0.9
    assert zoo.load("letters-linear", tmp_path).num_classes == 3


def fill_from_json(module: nn.Module, path: Path) -> None:
    state = {key: torch.tensor(value) for key, value in json.loads(path.read_text()).items()}
    module.load_state_dict(state)


def test_a_format_of_weights_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(formats.TABLE, ".json", f"{__name__}:fill_from_json")
    bench = Bench(tmp_path)
    model = {"name": "plane", "factory": "tests.support.runs:make"}
    usual = bench.run("lipschitz", models=[{**model, "weights": str(tmp_path / "linear.safetensors")}]).rows
    weights = {"0.weight": [[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], "0.bias": [0.0] * 3}
    (tmp_path / "linear.json").write_text(json.dumps(weights))
    again = bench.run("lipschitz", models=[{**model, "weights": str(tmp_path / "linear.json")}])
    assert again.computed == 0  # the same parameters, the same fingerprint
    assert [row.radius for row in again.rows] == [row.radius for row in usual]


def test_a_column_is_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = tables.columns
    extra = tables.Column("mine", "twice", "twice the mean radius", lambda s: f"{2 * s.mean_radius:.4f}")
    monkeypatch.setattr(tables, "columns", lambda summaries: [*known(summaries), extra])
    rows = Bench(tmp_path).run("lipschitz").rows
    summaries = summarise(rows, {2.0: [0.1]})
    out = Console(file=io.StringIO(), width=200)
    tables.render(summaries, out)
    text = f"{2 * float(np.mean([row.radius for row in rows])):.4f}"
    assert text in out.file.getvalue() and "twice" in out.file.getvalue()  # type: ignore[attr-defined]


def origin(hunt: Hunt, steps: int) -> Tensor:
    """Propose the origin."""
    return torch.zeros_like(hunt.x)


def test_an_attack_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    offered, offer = [], Hunt.offer

    def note(self: Hunt, name: str, points: Tensor, walk: bool = True) -> None:
        offered.append((name, points.tolist()))
        offer(self, name, points, walk)

    monkeypatch.setattr(battery, "_battery", lambda *_: iter(()))
    monkeypatch.setattr(battery, "ATTACKS", {"origin": origin})
    monkeypatch.setattr(Hunt, "offer", note)
    x = torch.tensor([[-1.0]], dtype=torch.float64)
    found, failed = battery.attack_with_all(Classifier(nn.Linear(1, 2).eval(), (1,), 2), x, (L1,), (-9.0, 9.0), steps=3)
    assert ("origin", [[0.0]]) in offered and "origin" not in failed
    assert not {name for name, _ in offered} & {"L-BFGS"}
    assert found[L1].distance.shape == (1,)
