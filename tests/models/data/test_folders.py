"""Folders of pictures: classes by name, first inputs of all classes, and pictures that do not fit."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certbench.errors import ConfigError, MissingBackendError
from certbench.models import data
from tests.support.pictures import Picture, png, stand_in

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures of wolves and one of an ape."""
    stand_in(monkeypatch)
    for place, pixels in zip(("wolf/1.png", "wolf/2.png", "wolf/3.PNG", "ape/9.png"), PIXELS, strict=True):
        file = tmp_path / "zoo" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(pixels))
    (tmp_path / "zoo" / "wolf" / "notes.txt").touch()
    (tmp_path / "zoo" / ".cache").mkdir()
    return tmp_path / "zoo"


def load(folder: Path, **said: Any) -> data.Dataset:
    return data.load(data.source(path=str(folder), **{"scale": "1/255", **said}))


def test_classes_are_in_the_order_of_their_names_and_take_turns(folder: Path) -> None:
    found = load(folder)
    assert found.name == "zoo" and found.classes == ("ape", "wolf") and found.labels.tolist() == [0, 1, 1, 1]
    assert torch.equal(found.inputs, torch.from_numpy(np.moveaxis(PIXELS[[3, 0, 1, 2]], 3, 1)) / 255)
    part = load(folder, take=1)
    assert part.num_classes == 2 and torch.equal(part.inputs, found.inputs[:1])


@pytest.mark.parametrize(
    ("place", "content", "message"),
    [
        ("wolf/4.png", b"no picture", r"4\.png cannot be read as a picture"),
        ("wolf/4.png", png(PIXELS[0])[:60], r"4\.png cannot be read as a picture"),
        ("wolf/4.png", png(PIXELS[0, :2]), r"4\.png is of size \(5, 2\).*resize"),
        ("wolf/4.png", png(PIXELS[0, :, :, 0]), r"4\.png has shape \(1, 3, 5\), but .*9\.png has \(3, 3, 5\)"),
        ("wolf/4.png", png(PIXELS[0, :, :, [0, 1, 2, 0]].transpose(1, 2, 0)), "is of mode RGBA; convert it"),
        ("yak/read.me", b"", "one folder of pictures .* per class; yak has none"),
        ("dataset_info.json", b"", "write hf:"),
    ],
)
def test_what_does_not_fit_is_named(folder: Path, place: str, content: bytes, message: str) -> None:
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("n_frames", 3, "has 3 frames"),
        ("tile", [("zip", (0, 0, 5, 3), 41, "RGB;16B")], "16 bits per channel"),
        ("tile", [("ppm", (0, 0, 5, 3), 15, ("RGB", 65535))], "16 bits per channel"),
    ],
)
def test_what_pillow_would_cut_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, attribute: str, value: Any, message: str
) -> None:
    monkeypatch.setattr(Picture, attribute, value, raising=False)
    with pytest.raises(ConfigError, match=message):
        load(folder)


def test_what_is_said_must_fit_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no scale is said"):
        load(folder, scale=None)
    with pytest.raises(ConfigError, match="leave layout out"):
        load(folder, layout="NHWC")
    with pytest.raises(ConfigError, match="leave labels and features out"):
        load(folder, labels="y")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingBackendError, match=r'pip install "certbench\[images\]"'):
        load(folder)
