"""Data sets: the frozen split of the digits, and what a user's file may hold."""

import gzip
import hashlib
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch

from certbench.errors import ConfigError
from certbench.models import data
from certbench.models.data.mnist import MNIST
from certbench.models.data.npz import INPUTS, LABELS
from tests.support import mnist

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


# MNIST


@pytest.mark.parametrize(("split", "count", "first"), [("train", 60000, [5, 0, 4]), ("test", 10000, [7, 2, 1])])
def test_mnist_is_in_its_own_order_in_the_unit_box(split: str, count: int, first: list[int]) -> None:
    found = mnist.load("mnist", split)
    assert found.name == f"mnist/{split}" and found.inputs.shape == (count, 1, 28, 28) and found.num_classes == 10
    assert found.inputs.dtype == torch.float32 and found.inputs.min() == 0 and found.inputs.max() == 1
    assert found.labels.dtype == torch.int64 and found.labels[:3].tolist() == first
    steps = found.inputs[:100] * 255
    assert torch.equal(steps, steps.round())


PIXELS = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
CLASSES = np.array([3, 9, 0, 1, 3], dtype=np.uint8)


def idx(array: Any) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three images to train on and two to test, which go for MNIST; the network must not be asked."""
    for split, rows in (("train", slice(0, 3)), ("test", slice(3, 5))):
        start = MNIST[split][0]
        sha256 = hashlib.sha256(PIXELS[rows].tobytes() + CLASSES[rows].tobytes()).hexdigest()
        monkeypatch.setitem(MNIST, split, (start, rows, sha256))
        (tmp_path / f"{start}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(PIXELS[rows])))
        (tmp_path / f"{start}-labels-idx1-ubyte").write_bytes(idx(CLASSES[rows]))
    monkeypatch.setenv("CERTBENCH_MNIST", str(tmp_path))
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda *_, **__: pytest.fail("OpenML was asked"))
    return tmp_path


@pytest.mark.parametrize(("split", "rows"), [("train", slice(0, 3)), ("test", slice(3, 5))])
def test_mnist_is_the_same_from_a_folder_and_from_openml(
    little: Path, split: str, rows: slice, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = data.load("mnist", split)
    assert torch.equal(found.inputs, torch.from_numpy(PIXELS[rows, None].astype(np.float32)) / 255)
    assert found.labels.tolist() == CLASSES[rows].tolist()

    answer = SimpleNamespace(
        data=PIXELS.reshape(5, 784).astype(np.float64), target=CLASSES.astype(str).astype(object)
    )  # as scikit-learn gives them
    monkeypatch.delenv("CERTBENCH_MNIST")
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda name, **_: {"mnist_784": answer}[name])
    assert data.load("mnist", split).fingerprint() == found.fingerprint()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t10k-images-idx3-ubyte.gz", None, "neither .*t10k-images-idx3-ubyte nor .*gz can be read.*CERTBENCH_MNIST"),
        ("t10k-images-idx3-ubyte.gz", b"no gzip", "can be read"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(PIXELS[3:5]))[:-20], "can be read"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(PIXELS[3:5])[:-1]), "ubyte.gz is no idx file"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(PIXELS[[4, 3]])), "is not MNIST, or incomplete, or in another"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(PIXELS[3:4])), "is not MNIST"),
        ("t10k-labels-idx1-ubyte", b"", "ubyte is no idx file"),
        ("t10k-labels-idx1-ubyte", idx(CLASSES[3:5]) + b"\0", "no idx file"),
        ("t10k-labels-idx1-ubyte", b"\0\0\x0d" + idx(CLASSES[3:5])[3:], "no idx file"),
        ("t10k-labels-idx1-ubyte", idx(CLASSES[:2]), "is not MNIST"),
    ],
    ids=["missing", "other", "cut", "short", "swapped", "fewer", "empty", "longer", "floats", "labels"],
)
def test_a_folder_with_something_else_is_refused(little: Path, name: str, content: bytes | None, message: str) -> None:
    (little / name).unlink()
    if content is not None:
        (little / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        data.load("mnist")
    assert len(data.load("mnist", "train")) == 3


@pytest.mark.parametrize("error", [URLError("no route"), ValueError("Dataset mnist_784 not found")])
def test_without_a_network_the_cure_is_named(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.delenv("CERTBENCH_MNIST", raising=False)
    monkeypatch.setattr("sklearn.datasets.fetch_openml", fail)
    with pytest.raises(ConfigError, match=r"cannot be downloaded.*t10k-labels.*CERTBENCH_MNIST"):
        data.load("mnist")


# Files


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(**arrays: Any) -> str:
        np.savez(tmp_path / "mine.npz", **arrays)
        return str(tmp_path / "mine.npz")

    return write


X, Y = np.linspace(-1, 2, 12).reshape(3, 4), np.array([0, 2, 1], dtype=np.uint8)


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("labels", LABELS)
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
        ("minst", "test", "write digits, mnist, or the path of a .npz file"),
        ("mine.pt", "test", "write digits, mnist, or the path"),
        ("nowhere.npz", "test", "there is no file nowhere.npz"),
        ("digits", "validation", "write train or test"),
        ("mine.npz", "train", "leave split out"),
    ],
)
def test_a_set_that_is_not_there_is_refused(spec: str, split: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data.load(spec, split)
