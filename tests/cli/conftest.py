"""A current directory with a little suite, and the command line in this process."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from certbench import cli
from certbench.core import registry
from tests.support.runs import POINTS, Fake

FACTORY = """
from torch import nn

def linear():
    return nn.Sequential(nn.Linear(2, 3))
"""

SUITE: dict[str, Any] = {
    "name": "little",
    "data": "plane.npz",
    "inputs": 3,
    "models": [{"name": "plane", "factory": "my_plane:linear", "weights": "plane.safetensors"}],
    "norms": [2],
    "radii": {"2": [0.1]},
    "certifiers": ["lipschitz"],
    "attacks": {"steps": 0},
    "executor": "inline",  # accidents and doubles of the tests are in this process
}

Run = Callable[..., tuple[int, str, str]]

FOLDER = Path("reports/runs/little")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with a model, data and a suite."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_plane", raising=False)
    monkeypatch.setitem(registry.table(), "fake", f"{Fake.__module__}:Fake")
    (tmp_path / "my_plane.py").write_text(FACTORY)
    np.savez("plane.npz", inputs=POINTS, labels=np.arange(3))
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    safetensors.torch.save_file({"0.weight": weight, "0.bias": torch.zeros(3)}, "plane.safetensors")
    write()
    yield tmp_path
    sys.modules.pop("my_plane", None)


def write(**changes: Any) -> None:
    Path("little.yaml").write_text(json.dumps({**SUITE, **changes}))


@pytest.fixture
def certbench(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["certbench", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        streams = capsys.readouterr()
        assert "Traceback" not in streams.out + streams.err
        return int(caught.value.code or 0), streams.out, streams.err

    return run
