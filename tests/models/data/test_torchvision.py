"""Data sets of torchvision, of which a stand-in is enough here: what is asked of it, and refusals."""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from certbench.errors import ConfigError, MissingBackendError
from certbench.models import data
from tests.support.pictures import Picture, png

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 3), dtype=np.uint8)


class CIFAR10:
    """Pictures with labels; the folder must be `here`."""

    classes = ("ape", "wolf", "yak")

    def __init__(self, root: str, train: bool = True, download: bool = True) -> None:
        assert not download
        if root != "here":
            raise RuntimeError("Dataset not found or corrupted.\nYou can use download=True to download it")
        self.train = train

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> Any:
        return Picture(png(PIXELS[i])), 2 - i if self.train else i


class Tabular:
    """Tensors with labels, in splits of any name."""

    def __init__(self, root: str, split: str = "train") -> None:
        self.split = split

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> Any:
        return torch.full((2,), float(i)), torch.tensor(i) if self.split == "valid" else "no label"


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    module, datasets = ModuleType("torchvision"), ModuleType("torchvision.datasets")
    datasets.CIFAR10, datasets.Tabular = CIFAR10, Tabular  # type: ignore[attr-defined]
    module.datasets = datasets  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", module)


def load(path: str, split: str = "test", **said: Any) -> data.Dataset:
    return data.load(data.source(path=f"torchvision:{path}", split=split, **said))


def test_splits_and_classes_are_those_of_the_library() -> None:
    found = load("CIFAR10:here", scale="1/255")
    assert found.name == "CIFAR10/test" and found.labels.tolist() == [0, 1, 2] and found.classes == CIFAR10.classes
    assert torch.equal(found.inputs, torch.from_numpy(np.moveaxis(PIXELS, 3, 1)) / 255)
    assert load("CIFAR10:here", "train", scale=1, take=1).labels.tolist() == [2]
    assert load("Tabular:here", "valid").inputs.tolist() == [[0, 0], [1, 1]]


def test_refusals_say_what_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    for path, split, message in (
        ("CIFAR10", "test", "write torchvision:CIFAR10:FOLDER"),
        ("CIFR10:here", "test", "no data set 'CIFR10'"),
        ("CIFAR10:there", "test", r"RuntimeError: Dataset not found or corrupted\.; nothing is downloaded"),
        ("CIFAR10:here", "valid", "write train or test"),
        ("Tabular:here", "test", "item 0 is no input with a label: ValueError"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(path, split)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingBackendError, match="pip install torchvision"):
        load("CIFAR10:here")
