"""Models of one's own in a suite: modules of many kinds, their outputs, thresholds and classes."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from certbench.core.classifier import Classifier
from certbench.errors import ConfigError
from certbench.runs.load import load as load_models
from certbench.runs.suite import load

SUITE = """\
name: mine
data: mine.npz
inputs: 3
models:
  - {name: mine, weights: WEIGHTS, MODEL}
norms: [2]
certifiers: [crown]
"""

NETS = """
import torch
from torch import nn
class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 3)
    def forward(self, x):
        return {"features": x, "logits": self.l(x)}
def several(): return Several()
def one(): return nn.Sequential(nn.Linear(4, 1), nn.Sigmoid())
def lazy(): return nn.Sequential(nn.LazyLinear(3))
def script(): return torch.jit.script(nn.Sequential(nn.Linear(4, 3)))
def exported():
    batch = torch.export.Dim("batch")
    example = (torch.zeros(2, 4),)
    return torch.export.export(nn.Sequential(nn.Linear(4, 3)).eval(), example, dynamic_shapes=({0: batch},)).module()
def program():
    return torch.export.export(nn.Sequential(nn.Linear(4, 3)).eval(), (torch.zeros(2, 4),))
"""

Nets = Callable[..., Classifier]


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nets:
    """Load a model of one's own as a suite names it, with data of four features and these labels."""
    for name in [name for name in sys.modules if name.startswith("users_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users_modules.py").write_text(NETS)
    weight, bias = (torch.rand(*shape, generator=torch.Generator().manual_seed(0)) for shape in ((3, 4), (3,)))
    safetensors.torch.save_file({"0.weight": weight, "0.bias": bias}, "w.safetensors")
    safetensors.torch.save_file({"l.weight": weight, "l.bias": bias}, "several.safetensors")
    safetensors.torch.save_file({"0.weight": weight[:1].clone(), "0.bias": bias[:1].clone()}, "one.safetensors")

    def loaded(model: str, labels: list[int], weights: str = "w.safetensors") -> Classifier:
        arrays: dict[str, Any] = {"inputs": np.zeros((3, 4), dtype=np.float32), "labels": np.array(labels)}
        np.savez("mine.npz", **arrays)
        Path("mine.yaml").write_text(SUITE.replace("WEIGHTS", weights).replace("MODEL", model))
        (found,) = load_models(load("mine.yaml"))[1]
        return found

    return loaded


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
@pytest.mark.parametrize("factory", ["lazy", "script", "exported"])
def test_modules_of_many_kinds_are_filled_and_have_their_own_classes(nets: Nets, factory: str) -> None:
    model = nets(f"factory: 'users_modules:{factory}'", [0, 1, 1])
    stored, x = safetensors.torch.load_file("w.safetensors"), torch.rand(2, 4)
    torch.testing.assert_close(model(x), x @ stored["0.weight"].T + stored["0.bias"])
    assert model.num_classes == 3, "the labels at hand know two"


def test_an_output_and_a_threshold_stand_in_the_suite(nets: Nets) -> None:
    several = nets("factory: 'users_modules:several', output: logits", [0, 1, 1], "several.safetensors")
    assert several.num_classes == 3
    one = nets("factory: 'users_modules:one', threshold: 0.75", [0, 1, 1], "one.safetensors")
    stored, x = safetensors.torch.load_file("one.safetensors"), torch.randn(50, 4)
    p = torch.sigmoid(x @ stored["0.weight"].T + stored["0.bias"])[:, 0]
    assert one.num_classes == 2 and torch.equal(one(x).argmax(dim=1), (p > 0.75).long())


@pytest.mark.parametrize(
    ("model", "labels", "message"),
    [
        ("factory: 'users_modules:lazy'", [1, 2, 3], r"knows 3 classes.*lie in 1\.\.3; they seem to start at 1"),
        ("factory: 'users_modules:lazy'", [0, 2, 4], r"knows 3 classes.*lie in 0\.\.4; classes are counted from 0"),
        ("factory: 'users_modules:program'", [0, 1, 1], r"ExportedProgram.*return program\.module\(\)"),
        ("factory: 'users_modules:several'", [0, 1, 1], "another module"),
    ],
)
def test_what_does_not_fit_is_named_with_its_line(nets: Nets, model: str, labels: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)mine\.yaml, line 5: .*" + message):
        nets(model, labels)


@pytest.mark.parametrize("option", ["output: 0", "threshold: 0.5"])
def test_models_of_the_zoo_have_their_heads(nets: Nets, option: str) -> None:
    del nets
    text = SUITE.replace("mine.npz", "digits").replace("name: mine, weights: WEIGHTS, MODEL", f"name: linear, {option}")
    Path("zoo.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"line 5: .*but no factory"):
        load_models(load("zoo.yaml"))


def test_a_file_of_a_whole_model_is_a_model_of_a_suite(nets: Nets, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 3)).eval()
    torch.export.save(
        torch.export.export(module, (torch.zeros(2, 4),), dynamic_shapes=({0: torch.export.Dim("n")},)), "net.pt2"
    )
    np.savez("mine.npz", inputs=np.zeros((3, 4), dtype=np.float32), labels=np.array([0, 1, 1]))
    Path("net_0.1.pt2").write_bytes(Path("net.pt2").read_bytes())
    torch.jit.save(torch.jit.script(module), "net.pt")
    whole = (
        ("net_0.1.pt2", "net_0.1"),
        ("{name: mine, path: net.pt2}", "mine"),
        ("{name: mine, path: net.pt}", "mine"),
    )
    for model, name in whole:
        Path("mine.yaml").write_text(SUITE.replace("{name: mine, weights: WEIGHTS, MODEL}", model))
        _, (found,) = load_models(load("mine.yaml"))
        x = torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
        assert found.name == name and torch.allclose(found(x), module(x), atol=1e-6)
    Path("mine.yaml").write_text(SUITE.replace("MODEL", "path: net.pt2"))
    with pytest.raises(ConfigError, match="has a path, which is a whole model; leave factory and weights out"):
        load_models(load("mine.yaml"))


def test_data_are_read_as_the_suite_says(nets: Nets) -> None:
    nets("factory: 'users_modules:lazy'", [0, 1, 1])
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    np.savez("images.npz", x=images, y=[0, 1, 1])
    suite = SUITE.replace("WEIGHTS", "w.safetensors").replace("MODEL", "factory: 'users_modules:lazy'")
    said = "{path: images.npz, layout: HW, scale: 1/255, shape: [4], take: 3}"
    Path("mine.yaml").write_text(suite.replace("mine.npz", said))
    found, _ = load_models(load("mine.yaml"))
    assert torch.equal(found.inputs, torch.arange(12).view(3, 4) / 255)
    for said, message in (
        ("images.npz", r"mine\.yaml, line 2: data: images\.npz: inputs are uint8"),
        ("{path: images.npz, scale: 1/255}", r"line 5: .*"),
        ("{path: mine.npz, std: 1}", r"line 2: data: std is the model's business"),
        ("{path: mine.npz, layuot: HW}", r"line 2: data\.layuot: .*did you mean 'layout'"),
        ("{path: mine.npz, layout: HWC}", r"line 2: data\.layout: Input should be 'NCHW', 'NHWC' or 'HW'"),
        ("[mine.npz]", r"line 2: data: "),
    ):
        Path("mine.yaml").write_text(suite.replace("mine.npz", said))
        with pytest.raises(ConfigError, match=message):
            load_models(load("mine.yaml"))
