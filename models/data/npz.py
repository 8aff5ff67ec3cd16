"""Data sets in a user's .npz file."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from certbench.core.inputs import cure_of_labels
from certbench.errors import ConfigError
from certbench.models.data.base import Dataset

INPUTS = ("inputs", "x", "images")


LABELS = ("labels", "y")
"""Names of the label array in a `.npz` file. It must have exactly one of them, and exactly one of `INPUTS`."""


def read_npz(path: Path) -> Dataset:
    """Read a `.npz` file; `load` describes its content.

    Raises:
        ConfigError: the file holds something else.
    """
    arrays = _arrays(path)
    inputs, labels = _one_of(INPUTS, arrays, path), _one_of(LABELS, arrays, path)
    if inputs.dtype == np.uint8:
        inputs = inputs.astype(np.float32) / np.float32(255)
    if not np.issubdtype(inputs.dtype, np.floating):
        raise ConfigError(f"{path}: inputs are {inputs.dtype}; store floats, or uint8, which is divided by 255")
    if inputs.ndim < 2 or inputs.size == 0:
        raise ConfigError(f"{path}: inputs have shape {inputs.shape}; store (n, ...), with n at least 1")
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        cure = cure_of_labels(labels, len(inputs))
        raise ConfigError(f"{path}: labels are {labels.dtype} of shape {labels.shape}; store {cure}")
    labels = labels.astype(np.int64)
    if len(inputs) != len(labels):
        raise ConfigError(f"{path}: {len(inputs)} inputs, but {len(labels)} labels")
    with np.errstate(over="ignore"):
        inputs = inputs.astype(np.float32)
    if not np.isfinite(inputs).all():
        raise ConfigError(f"{path}: inputs hold NaN, or numbers too large for float32")
    declared = arrays.get("num_classes", labels.max() + 1)
    if declared.ndim != 0 or not np.issubdtype(declared.dtype, np.integer):
        raise ConfigError(f"{path}: num_classes is {declared.dtype} of shape {declared.shape}; store one integer")
    num_classes = int(declared)
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ConfigError(f"{path}: labels lie in {labels.min()}..{labels.max()}, not in 0..{num_classes - 1}")
    return Dataset(path.stem, torch.from_numpy(inputs), torch.from_numpy(labels), num_classes)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read every array of the file; refuse pickles, because they run code when opened."""
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); write it with np.savez(path, inputs=..., labels=...), "
            "from arrays of numbers, not of objects"
        ) from error


def _one_of(names: tuple[str, ...], arrays: dict[str, NDArray[Any]], path: Path) -> NDArray[Any]:
    found = [name for name in names if name in arrays]
    if len(found) != 1:
        raise ConfigError(f"{path} needs one array called {' or '.join(names)}; it has {', '.join(arrays) or 'none'}")
    return arrays[found[0]]
