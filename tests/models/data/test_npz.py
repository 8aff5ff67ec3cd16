"""Data sets of users, in files of NumPy."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certbench.errors import ConfigError
from certbench.models import data
from certbench.models.data.npz import INPUTS, LABELS


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


def test_bytes_are_divided_by_255_where_it_is_said(write: Callable[..., str]) -> None:
    path = write(images=np.arange(256, dtype=np.uint8).reshape(2, 128), y=[0, 1], num_classes=7)
    mine = data.load(data.source(path=path, scale="1/255"))
    assert torch.equal(mine.inputs, torch.arange(256).view(2, 128) / 255) and mine.num_classes == 7
    assert "divided by 255" in mine.done
    assert torch.equal(data.load(data.source(path=path, scale=1)).inputs, torch.arange(256.0).view(2, 128))
    with pytest.raises(ConfigError, match=r"inputs are uint8 and no scale is said.*write scale: 1/255"):
        data.load(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": Y}, "one array called inputs or x or images; it has labels"),
        ({"inputs": X}, "one array called labels or y; it has inputs"),
        ({}, "it has none"),
        ({"inputs": X, "x": X, "y": Y}, "one array called inputs"),
        ({"x": X, "y": Y[:2]}, "3 inputs, but 2 labels"),
        ({"x": X, "y": Y.astype(float)}, r"labels are float64.*store labels\.astype\(int\)"),
        ({"x": X, "y": Y + 0.5}, "labels are float64.*store one integer per input"),
        ({"x": X, "y": np.eye(3, dtype=int)}, r"of shape \(3, 3\); store labels\.argmax\(axis=1\): these are one-hot"),
        ({"x": X, "y": np.eye(3)}, r"store labels\.argmax\(axis=1\): these are one-hot"),
        ({"x": X, "y": np.ones((3, 3), dtype=int)}, r"of shape \(3, 3\); store one integer per input"),
        ({"x": X, "y": Y[:, None]}, r"of shape \(3, 1\); store labels\[:, 0\]\.astype\(int\): these are a column"),
        ({"x": X, "y": np.array(["a", "b", "c"])}, "labels are <U1.*store one integer per input"),
        ({"x": X, "y": [0, -1, 1]}, r"labels lie in -1\.\.1, not in 0\.\.1"),
        ({"x": X, "y": np.array([0, 1, 2**63 + 1], dtype=np.uint64)}, r"not in 0\.\.2147483647"),
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
