"""Data sets of Hugging Face, of which a stand-in is enough here: splits, columns, and refusals."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from certbench.errors import ConfigError, MissingBackendError
from certbench.models import data
from tests.support.pictures import Picture, png

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3), dtype=np.uint8)


class Rows:
    """A table of pictures, numbers and labels."""

    column_names = ("image", "age", "size", "label")
    features = {**dict.fromkeys(column_names), "label": SimpleNamespace(names=["ape", "wolf"])}  # noqa: RUF012

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": Picture(png(PIXELS[i])), "age": i + 0.5, "size": 3.0, "label": 1 - i}


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("datasets")

    def load_from_disk(folder: str) -> Any:
        if folder not in ("one", "both/"):
            raise FileNotFoundError(f"Directory {folder} is neither a Dataset nor a DatasetDict")
        return Rows() if folder == "one" else {"train": Rows(), "valid": Rows()}

    module.load_from_disk = load_from_disk  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def load(path: str, **said: Any) -> data.Dataset:
    return data.load(data.source(path=f"hf:{path}", **said))


def test_pictures_and_tables_have_their_columns() -> None:
    found = load("one", scale="1/255")
    assert torch.equal(found.inputs, torch.from_numpy(np.moveaxis(PIXELS, 3, 1)) / 255)
    assert found.labels.tolist() == [1, 0] and found.classes == ("ape", "wolf") and found.name == "one/test"
    table = load("both/", split="valid", features=["age", "size"])
    assert table.inputs.tolist() == [[0.5, 3], [1.5, 3]] and table.features == ("age", "size")


def test_refusals_say_what_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    for path, said, message in (
        ("two", {}, r"FileNotFoundError.*data\.save_to_disk\(FOLDER\)"),
        ("both/", {}, "no split 'test'; it has train, valid"),
        ("one", {"labels": "kind"}, "one array called kind; it has image, age, size, label"),
        ("one", {"features": ["age", "weight"]}, "one array called weight"),
        ("one", {}, "no scale is said"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(path, **said)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingBackendError, match="pip install datasets"):
        load("one")
