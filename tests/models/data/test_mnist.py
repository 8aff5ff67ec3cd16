import gzip
import hashlib
import struct
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
from tests.support import mnist


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
        ("t10k-images-idx3-ubyte.gz", b"no gzip", "cannot be read.*CERTBENCH_MNIST"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(PIXELS[3:5]))[:-20], "cannot be read.*CERTBENCH_MNIST"),
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
