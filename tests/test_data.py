"""Data sets: the frozen split of the digits, and what a user's file may hold."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certbench.errors import ConfigError
from certbench.models import data

SPLITS = {
    "train": (1297, "ebf62371dfb7a5b41e0b47431b544d053f56fcb48bb2ce4d55990b0f5c5b61f5"),
    "test": (500, "a7210d0b0f568f4ff4e57eda05d58d99c732e40edfae0c18ae9bf4887ad1dacb"),
}


@pytest.mark.parametrize("split", SPLITS)
def test_the_split_is_frozen(split: str) -> None:
    digits = data.load("digits", split)
    assert (len(digits), digits.fingerprint()) == SPLITS[split]


@pytest.mark.parametrize("split", SPLITS)
def test_digits_are_images_in_the_unit_box(split: str) -> None:
    digits = data.load("digits", split)
    assert digits.input_shape == (1, 8, 8) and digits.num_classes == 10
    assert digits.inputs.dtype == torch.float32 and digits.labels.dtype == torch.int64
    assert digits.inputs.min() == 0 and digits.inputs.max() == 1


def test_train_and_test_are_disjoint_and_make_all_digits() -> None:
    images = torch.cat([data.load("digits", split).inputs for split in SPLITS]).flatten(1)
    assert len({image.numpy().tobytes() for image in images}) == 1797


@pytest.mark.parametrize("n", [10, 50, 100, 500])
def test_every_class_has_its_share_of_the_first_test_inputs(n: int) -> None:
    counts = data.load("digits").labels[:n].bincount(minlength=10)
    assert counts.min() >= n / 10 - 2 and counts.max() <= n / 10 + 1


def test_the_split_does_not_depend_on_the_order_in_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.datasets

    digits = sklearn.datasets.load_digits()
    order = np.random.default_rng(0).permutation(1797)
    digits.images, digits.target = digits.images[order], digits.target[order]
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: digits)
    assert data.load("digits").fingerprint() == SPLITS["test"][1]


def test_a_fingerprint_is_over_content_never_over_the_name() -> None:
    digits = data.load("digits")
    same = replace(digits, name="other")
    others = [
        replace(digits, inputs=digits.inputs + 1e-3),
        replace(digits, inputs=digits.inputs.flatten(1)),
        replace(digits, labels=digits.labels.flip(0)),
        replace(digits, num_classes=11),
    ]
    assert same.fingerprint() == digits.fingerprint()
    assert len({other.fingerprint() for other in [digits, *others]}) == 5


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(**arrays: Any) -> str:
        np.savez(tmp_path / "mine.npz", **arrays)
        return str(tmp_path / "mine.npz")

    return write


X, Y = np.linspace(-1, 2, 12).reshape(3, 4), np.array([0, 2, 1], dtype=np.uint8)


@pytest.mark.parametrize("inputs", data.INPUTS)
@pytest.mark.parametrize("labels", data.LABELS)
def test_floats_are_used_as_they_are(write: Callable[..., str], inputs: str, labels: str) -> None:
    mine = data.load(write(**{inputs: X, labels: Y}))
    assert mine.name == "mine" and mine.num_classes == 3 and mine.input_shape == (4,)
    assert torch.equal(mine.inputs, torch.tensor(X, dtype=torch.float32))
    assert mine.labels.tolist() == [0, 2, 1]


def test_bytes_are_divided_by_255(write: Callable[..., str]) -> None:
    images = np.arange(256, dtype=np.uint8).reshape(2, 128)
    mine = data.load(write(images=images, y=[0, 1], num_classes=7))
    assert torch.equal(mine.inputs, torch.arange(256).view(2, 128) / 255) and mine.num_classes == 7


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": Y}, "one array called inputs or x or images; it has labels"),
        ({"inputs": X}, "one array called labels or y; it has inputs"),
        ({}, "it has none"),
        ({"inputs": X, "x": X, "y": Y}, "one array called inputs"),
        ({"x": X, "y": Y[:2]}, "3 inputs, but 2 labels"),
        ({"x": X, "y": Y.astype(float)}, "labels are float64"),
        ({"x": X, "y": np.eye(3, dtype=int)}, r"of shape \(3, 3\); store one integer per input"),
        ({"x": X, "y": [0, -1, 1]}, r"labels lie in -1\.\.1, not in 0\.\.1"),
        ({"x": X, "y": Y, "num_classes": 2}, r"not in 0\.\.1"),
        ({"x": X, "y": Y, "num_classes": [3]}, "num_classes is int64 of shape"),
        ({"x": X, "y": Y, "num_classes": 3.5}, "num_classes is float64"),
        ({"x": np.where(X > 1, np.nan, X), "y": Y}, "NaN"),
        ({"x": X * 1e300, "y": Y}, "too large for float32"),
        ({"x": X.astype(int), "y": Y}, "inputs are int64"),
        ({"x": X + 1j, "y": Y}, "inputs are complex"),
        ({"x": X[:, 0], "y": Y}, r"inputs have shape \(3,\)"),
        ({"x": X[:0], "y": Y[:0]}, r"inputs have shape \(0, 4\)"),
    ],
)
def test_a_file_with_something_else_is_refused(write: Callable[..., str], arrays: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data.load(write(**arrays))


class Bomb:
    """Sets off when unpickled."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was opened",))


def test_objects_are_refused_unopened(write: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match="not of objects"):
        data.load(write(x=np.array([Bomb()] * 3, dtype=object), y=Y))


@pytest.mark.parametrize("content", [b"", b"not a zip", pickle.dumps([1, 2]), b"PK\x03\x04"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        data.load(str(tmp_path / "mine.npz"))


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_refused(write: Callable[..., str], keep: float) -> None:
    path = Path(write(x=X, y=Y))
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(ConfigError, match="cannot be read"):
        data.load(str(path))


def test_a_flipped_bit_is_noticed(write: Callable[..., str]) -> None:
    path = Path(write(x=X, y=Y))
    content = bytearray(path.read_bytes())
    content[content.index(X.tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        data.load(str(path))


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", X)
    (tmp_path / "mine.npy").rename(tmp_path / "mine.npz")
    with pytest.raises(ConfigError, match="cannot be read"):
        data.load(str(tmp_path / "mine.npz"))


@pytest.mark.parametrize(
    ("spec", "split", "message"),
    [
        ("mnist", "test", "write digits, or the path of a .npz file"),
        ("mine.pt", "test", "write digits, or the path"),
        ("nowhere.npz", "test", "there is no file nowhere.npz"),
        ("digits", "validation", "write train or test"),
        ("mine.npz", "train", "leave split out"),
    ],
)
def test_a_set_that_is_not_there_is_refused(spec: str, split: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data.load(spec, split)
