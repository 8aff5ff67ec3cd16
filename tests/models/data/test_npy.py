"""Files of one array: inputs in one, labels in another; headers that lie are refused before anything is allocated."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib import format as npy

from certbench.errors import ConfigError
from certbench.models import data

X = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    np.save("y.npy", np.array([0, 1, 1, 4]))
    return tmp_path


def load(take: int | None = None, labels: str | None = "y.npy") -> data.Dataset:
    return data.load(data.source(path="x.npy", labels=labels, take=take))


def test_labels_have_a_file_of_their_own(folder: Path) -> None:
    del folder
    found = load(take=2)
    assert torch.equal(found.inputs, torch.from_numpy(X[:2])) and found.labels.tolist() == [0, 1]
    assert found.num_classes == 5, "of all labels, not of those that are taken"
    with pytest.raises(ConfigError, match=r"write labels: FILE\.npy"):
        load(labels=None)
    with pytest.raises(ConfigError, match=r"there is no file z\.npy"):
        load(labels="z.npy")


@pytest.mark.parametrize("shape", [(10**13, 3), (3, 3), (-1, 3)])
def test_a_header_that_lies_is_refused(folder: Path, shape: tuple[int, ...]) -> None:
    with (folder / "x.npy").open("wb") as file:
        npy.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": "<f4"})
        file.write(X.tobytes())
    with pytest.raises(ConfigError, match=r"x\.npy cannot be read"):
        load()


def test_objects_lengths_and_other_files_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="leave features out"):
        data.load(data.source(path="x.npy", labels="y.npy", features="a"))
    np.save("y.npy", np.array([0, 1, 2]))
    with pytest.raises(ConfigError, match=r"x\.npy has shape \(4, 3\), but y\.npy has shape \(3,\)"):
        load()
    np.save("y.npy", np.array([0, "a", None, 2], dtype=object))
    with pytest.raises(ConfigError, match=r"y\.npy cannot be read.*objects, not numbers"):
        load()
    for content in (b"", b"no array", npy.magic(1, 0), (folder / "x.npy").read_bytes()[:-1]):
        (folder / "y.npy").write_bytes(content)
        with pytest.raises(ConfigError, match=r"y\.npy cannot be read"):
            load()
