"""Networks of timm and transformers, of which stand-ins are enough here: what is asked of them, and refusals."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certbench.errors import ConfigError, MissingBackendError
from certbench.formats.factory import load_external


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        return SimpleNamespace(logits=self.last(x))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the stand-ins were asked for."""
    found: list[Any] = []
    timm, transformers = ModuleType("timm"), ModuleType("transformers")

    def create_model(name: str, pretrained: bool) -> nn.Module:
        found.append((name, pretrained))
        if name != "small":
            raise RuntimeError("Unknown model")
        return nn.Linear(4, 3)

    class Auto:
        @staticmethod
        def from_pretrained(name: str, local_files_only: bool) -> nn.Module:
            found.append((name, local_files_only))
            if not Path(name).is_dir() and local_files_only:
                raise OSError("no such files here")
            return Head()

        @staticmethod
        def from_config(config: Any) -> nn.Module:
            found.append("random")
            return Head()

    timm.create_model = create_model  # type: ignore[attr-defined]
    transformers.AutoModelForImageClassification = transformers.AutoConfig = Auto  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    return found


def test_weights_come_from_this_machine_unless_a_download_is_allowed(asked: list[Any], tmp_path: Path) -> None:
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "w.pth")
    assert load_external("timm:small", tmp_path / "w.pth", input_shape=(4,)).num_classes == 3
    with pytest.raises(ConfigError, match=r"timm:small has random weights; write weights: FILE, or download: true"):
        load_external("timm:small", None, input_shape=(4,))
    load_external("timm:small", None, input_shape=(4,), download=True)
    assert asked == [("small", False), ("small", True)]


def test_a_classifier_of_transformers_has_its_logits(asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").touch()
    assert load_external(f"hf:{tmp_path}", None, input_shape=(4,))(torch.zeros(2, 4)).shape == (2, 3)
    assert asked == [(str(tmp_path), True)]
    with pytest.raises(ConfigError, match=r"hf:org/net cannot be made: OSError: no such files.*unless download: true"):
        load_external("hf:org/net", None, input_shape=(4,))
    (tmp_path / "net.safetensors").unlink()
    load_external(f"hf:{tmp_path}", None, input_shape=(4,))
    assert asked[-1] == "random"


def test_unknown_names_and_missing_packages_are_said(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"timm:smal cannot be made: RuntimeError: Unknown model"):
        load_external("timm:smal", "w.pth", input_shape=(4,))
    for name in ("timm", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingBackendError, match="pip install timm"):
        load_external("timm:small", "w.pth", input_shape=(4,))
    with pytest.raises(MissingBackendError, match="pip install transformers"):
        load_external("hf:net", None, input_shape=(4,))
    with pytest.raises(ConfigError, match="download is for networks of libraries"):
        load_external("users:net", None, input_shape=(4,), download=True)
