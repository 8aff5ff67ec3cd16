"""Users' own models: a factory and a file of weights."""

import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from certbench import Classifier
from certbench.errors import ConfigError
from certbench.formats.factory import load_external
from certbench.models import data

SOURCE = """
import torch
from torch import nn

def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Dropout(), nn.ReLU(), nn.Linear(5, 10))

def double(): return small().double()
def half(): return small().half()
def wide(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Dropout(), nn.ReLU(), nn.Linear(6, 10))
def deep(): return nn.Sequential(*small(), nn.Linear(10, 10))
def needy(classes): return small()
def broken(): raise OSError("no such disk")
def nothing(): return None
def tied():
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
    module[2].weight = module[1].weight
    return module
number = 3
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's module and weights, the current one; imports are undone afterwards."""
    for name in [name for name in sys.modules if name.startswith("users_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users_nets.py").write_text(SOURCE)
    (tmp_path / "users_typo.py").write_text("import users_missing_package")
    (tmp_path / "users_folder").mkdir()
    (tmp_path / "users_folder" / "nets.py").write_text(SOURCE)
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Dropout(), nn.ReLU(), nn.Linear(5, 10))
    safetensors.torch.save_file(small.state_dict(), tmp_path / "w.safetensors")
    torch.save(small.state_dict(), tmp_path / "w.pt")
    shutil.copy(tmp_path / "w.pt", tmp_path / "renamed.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-8])
    return tmp_path


def load(factory: str, weights: str = "w.safetensors", classes: int = 10) -> Classifier:
    return load_external(factory, weights, input_shape=(1, 8, 8), num_classes=classes)


@pytest.mark.parametrize("module", ["users_nets", "users_folder.nets"])
def test_ones_own_model_is_loaded_exactly(workplace: Path, module: str) -> None:
    digits = data.load("digits")
    state = torch.get_rng_state()
    model = load(f"{module}:small")
    assert torch.equal(torch.get_rng_state(), state)
    assert model.name == f"{module}:small" and not model.module.training
    stored = safetensors.torch.load_file(workplace / "w.safetensors")
    assert all(torch.equal(tensor, stored[key]) for key, tensor in model.module.state_dict().items())
    hidden = torch.relu(digits.inputs.flatten(1) @ stored["1.weight"].T + stored["1.bias"])
    assert torch.allclose(model(digits.inputs), hidden @ stored["4.weight"].T + stored["4.bias"], atol=1e-5)


def test_widening_is_exact(workplace: Path) -> None:
    stored = safetensors.torch.load_file(workplace / "w.safetensors")
    for key, tensor in load("users_nets:double").module.state_dict().items():
        assert tensor.dtype == torch.float64 and torch.equal(tensor, stored[key].double())


def test_shared_parameters_are_loaded(workplace: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
    module[2].weight = module[1].weight
    safetensors.torch.save_model(module, str(workplace / "tied.safetensors"))
    loaded, x = load("users_nets:tied", "tied.safetensors").module, torch.rand(2, 1, 8, 8)
    assert torch.equal(loaded(x), module(x))


@pytest.mark.parametrize(
    ("factory", "weights", "message"),
    [
        ("users_nets", "w.safetensors", "write module:function"),
        (":small", "w.safetensors", "write module:function"),
        ("users_absent:small", "w.safetensors", "there is no module 'users_absent' to import"),
        ("users_nets.py:small", "w.safetensors", r"there is no module 'users_nets.py'.*without \.py"),
        ("users_folder/nets:small", "w.safetensors", "there is no module.*dots for folders"),
        ("users_typo:small", "w.safetensors", "importing 'users_typo' fails.*users_missing_package"),
        (".users_nets:small", "w.safetensors", "importing '.users_nets' fails"),
        ("users_nets:smal", "w.safetensors", "unknown function of 'users_nets' 'smal'; did you mean 'small'"),
        ("users_nets:number", "w.safetensors", "unknown function of 'users_nets' 'number'"),
        ("users_nets:needy", "w.safetensors", r"users_nets:needy\(\) fails: TypeError.*'classes'"),
        ("users_nets:broken", "w.safetensors", "fails: OSError: no such disk"),
        ("users_nets:nothing", "w.safetensors", "returns NoneType, not a torch.nn.Module"),
        ("users_nets:small", "absent.safetensors", "there is no file absent.safetensors"),
        ("users_nets:wide", "w.pt", r"w\.pt holds the parameters of another module: 1\.weight has shape"),
        ("users_nets:small", "renamed.safetensors", r"not a safetensors file.*save_file\(model\.state_dict"),
        ("users_nets:small", "cut.safetensors", "not a safetensors file, or damaged"),
        ("users_nets:wide", "w.safetensors", r"(?s)another module.*size mismatch for 1\.weight"),
        ("users_nets:deep", "w.safetensors", r"(?s)another module.*Missing key.*5\.bias"),
        ("users_nets:tied", "w.safetensors", r"(?s)another module"),
        ("users_nets:half", "w.safetensors", "float32 and would be rounded to torch.float16"),
    ],
)
def test_mistakes_with_ones_own_model_are_named(workplace: Path, factory: str, weights: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(factory, weights)


def test_the_wrong_class_count_is_named(workplace: Path) -> None:
    with pytest.raises(ConfigError, match=r"users_nets:small gives logits of shape \(2, 10\)"):
        load("users_nets:small", classes=7)
