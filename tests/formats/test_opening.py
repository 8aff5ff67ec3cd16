"""Files of whole models: exported programs, TorchScript, pickled modules."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certbench.errors import ConfigError
from certbench.formats.opening import open_model


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 3)).eval()


def exported(path: Path, dynamic: bool) -> None:
    batch = {0: torch.export.Dim("batch")} if dynamic else None
    size = 2 if dynamic else 1
    torch.export.save(torch.export.export(net(), (torch.zeros(size, 4),), dynamic_shapes=(batch,)), path)


def scripted(path: Path) -> None:
    torch.jit.save(torch.jit.script(net().train()), path)


WRITE: dict[str, tuple[str, Callable[[Path], None], bool]] = {
    "exported": ("net.pt2", lambda path: exported(path, True), False),
    "exported for one input": ("net.pt2", lambda path: exported(path, False), False),
    "TorchScript": ("net.pt", scripted, False),
    "a module": ("net.pth", lambda path: torch.save(net(), path), True),
}


@pytest.mark.parametrize("name", WRITE)
def test_a_whole_model_gives_what_it_gave(tmp_path: Path, name: str) -> None:
    file, write, trust = WRITE[name]
    write(tmp_path / file)
    classifier = open_model(tmp_path / file, input_shape=(4,), trust=trust)
    x = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    assert (classifier.name, classifier.num_classes, classifier(x[:0]).shape) == ("net", 3, (0, 3))
    assert torch.allclose(classifier(x), net()(x), atol=1e-6)


def test_a_compiled_program_is_known_by_its_file_and_its_tensors(tmp_path: Path) -> None:
    scripted(tmp_path / "net.pt")
    torch.jit.save(torch.jit.script(nn.Sequential(*net(), nn.ReLU())), tmp_path / "other.pt")
    first, again, other = (open_model(tmp_path / f"{name}.pt", input_shape=(4,)) for name in ("net", "net", "other"))
    assert first.fingerprint() == again.fingerprint() == copy.deepcopy(first).fingerprint() != other.fingerprint()
    with torch.no_grad():
        next(again.module.parameters()).mul_(2)
    assert first.fingerprint() != again.fingerprint()
    first.module.train()
    assert open_model(tmp_path / "net.pt", input_shape=(4,)).fingerprint() != first.fingerprint()


def test_an_exported_program_says_its_shape(tmp_path: Path) -> None:
    exported(tmp_path / "net.pt2", True)
    assert open_model(tmp_path / "net.pt2").input_shape == (4,)
    with pytest.raises(ConfigError, match=r"takes inputs of shape \(4,\), not \(5,\)"):
        open_model(tmp_path / "net.pt2", input_shape=(5,))


class Mixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class FarMixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - torch.relu(x - 5000).mean(0)


BAD: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "no program": ("net.pt2", lambda path: path.write_bytes(b"no"), "cannot be read as a program of torch.export"),
    "missing": ("net.pt2", lambda path: None, "there is no file"),
    "weights": (
        "net.pt",
        lambda path: torch.save(net().state_dict(), path),
        r"weights alone.*factory: module:function",
    ),
    "numbers": ("net.pt", lambda path: torch.save([1, 2], path), "holds a list, not a whole model"),
    "module": ("net.pt", lambda path: torch.save(net(), path), "trust: true"),
    "a batch mixed": (
        "net.ts",
        lambda path: torch.jit.save(torch.jit.script(Mixed()), path),
        "the outputs for an input depend on the others",
    ),
    "a batch mixed where numbers are large": (
        "net.ts",
        lambda path: torch.jit.save(torch.jit.script(FarMixed()), path),
        "the outputs for an input depend on the others",
    ),
    "weights of safetensors": ("net.safetensors", lambda path: path.write_bytes(b""), "no file of a whole model"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_no_whole_model_are_refused(tmp_path: Path, name: str) -> None:
    file, write, message = BAD[name]
    write(tmp_path / file)
    with pytest.raises(ConfigError, match=message):
        open_model(tmp_path / file, input_shape=(4,))


def test_scripts_and_modules_do_not_say_their_shape(tmp_path: Path) -> None:
    scripted(tmp_path / "net.pt")
    with pytest.raises(ConfigError, match="give the shape of one"):
        open_model(tmp_path / "net.pt")
