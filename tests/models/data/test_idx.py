"""Idx files: images with labels beside them; a header that lies is refused before anything is allocated."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certbench.errors import ConfigError
from certbench.models import data

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)


def idx(array: Any, kind: int = 8) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES)))
    (tmp_path / "mine-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([2, 0, 1], dtype=np.uint8))))
    return tmp_path


def load(folder: Path, name: str = "mine-images-idx3-ubyte.gz", **said: Any) -> data.Dataset:
    return data.load(data.source(path=str(folder / name), **{"layout": "HW", "scale": "1/255", **said}))


def test_labels_are_beside_the_images(folder: Path) -> None:
    found = load(folder)
    assert torch.equal(found.inputs[:, 0], torch.from_numpy(IMAGES) / 255) and found.labels.tolist() == [2, 0, 1]
    (folder / "numbers.idx").write_bytes(idx(IMAGES.astype(">f4"), 0x0D))
    with pytest.raises(ConfigError, match="no labels beside it; write labels: FILE"):
        load(folder, "numbers.idx")
    floats = load(folder, "numbers.idx", labels=str(folder / "mine-labels-idx1-ubyte.gz"))
    assert floats.fingerprint() == found.fingerprint()


@pytest.mark.parametrize("packed", [True, False])
def test_a_header_that_lies_is_refused(folder: Path, packed: bool) -> None:
    content = struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2**31) + IMAGES.tobytes()
    name = "mine-images-idx3-ubyte.gz" if packed else "mine-images.idx3-ubyte"
    (folder / name).write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ConfigError, match="is no idx file, or incomplete"):
        load(folder, name, labels=str(folder / "mine-labels-idx1-ubyte.gz"))
