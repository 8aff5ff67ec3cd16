"""Data sets in a user's .npy files: inputs in one, labels in another."""

import math
import os
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from certbench.errors import ConfigError
from certbench.models.data.found import Found, rows
from certbench.models.data.source import Source


def read_npy(path: Path, source: Source) -> Found:
    """Read inputs from a `.npy` file, and labels from the file that `labels` names.

    Raises:
        ConfigError: one of the files is missing or damaged.
    """
    if source.labels is None:
        raise ConfigError(f"{path} has inputs alone; write labels: FILE.npy, with one integer per input")
    if source.features is not None:
        raise ConfigError(f"{path} is one array, which has no names; leave features out")
    inputs, labels = array_of(path), array_of(Path(str(source.labels)))
    if inputs.ndim == 0 or labels.ndim == 0 or len(inputs) != len(labels):
        raise ConfigError(f"{path} has shape {inputs.shape}, but {source.labels} has shape {labels.shape}")
    chosen = rows(source, len(inputs)) if len(inputs) else slice(0)
    return Found(
        path.stem,
        np.asarray(inputs[chosen]),
        np.asarray(labels[chosen]),
        taken=True,
        num_classes=int(labels.max()) + 1 if labels.dtype.kind in "iu" and labels.size else None,
        notes=(f"labels of {source.labels}",),
    )


def array_of(path: Path) -> NDArray[Any]:
    """Open a `.npy` file; its numbers are read when they are used.

    Raises:
        ConfigError: there is no such file, or it is damaged.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    try:
        with path.open("rb") as file:
            check_header(file, os.fstat(file.fileno()).st_size)
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, TypeError, SyntaxError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); write it with np.save(path, array), from an array of numbers"
        ) from error
    return found


def check_header(file: IO[bytes] | BufferedIOBase, size: int) -> None:
    """Refuse an array of objects, and a header that claims more or fewer numbers than there are bytes.

    Raises:
        ValueError: it is one of them, or no `.npy` file.
    """
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it has objects, not numbers")
    claimed, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if claimed != there or any(axis < 0 for axis in shape):
        raise ValueError(f"its header claims {claimed} bytes of numbers, of which {there} are there")
