"""Data sets in idx files, as those of MNIST: a magic number, sizes, then numbers; packed by gzip or not."""

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certbench.errors import ConfigError
from certbench.files.arrays import PACKED
from certbench.models.data.found import Found
from certbench.models.data.source import Source

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""Types of numbers by their code, big-endian."""


def read_idx(path: Path, source: Source) -> Found:
    """Read images from an idx file, and labels from the file that `labels` names.

    Without `labels`, the file beside it is read whose name has `labels` in place of `images`, and `idx1` of `idx3`.

    Raises:
        ConfigError: one of the files is missing or damaged.
    """
    if source.features is not None:
        raise ConfigError(f"{path} is one array, which has no names; leave features out")
    if source.labels is None:
        beside = path.with_name(re.sub(r"idx\d", "idx1", path.name.replace("images", "labels")))
        if beside == path or not beside.is_file():
            raise ConfigError(f"{path} has inputs alone, and there are no labels beside it; write labels: FILE")
    else:
        beside = Path(str(source.labels))
    return Found(path.name.partition(".")[0], array_of(path), array_of(beside), notes=(f"labels of {beside}",))


def array_of(path: Path) -> NDArray[Any]:
    """Read the array of an idx file.

    Raises:
        ConfigError: there is no such file, or it is damaged.
    """
    try:
        size = path.stat().st_size
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(4)
            kind, axes = (start[2], start[3]) if len(start) == 4 and start[:2] == b"\0\0" else (0, 0)
            sizes = file.read(4 * axes)
            if kind not in TYPES or len(sizes) != 4 * axes:
                raise ConfigError(f"{path} is no idx file of numbers, or incomplete")
            shape = np.frombuffer(sizes, dtype=">u4").tolist()
            dtype = np.dtype(TYPES[kind])
            claimed = math.prod(shape) * dtype.itemsize
            content = file.read(claimed + 1) if claimed <= (PACKED if path.suffix == ".gz" else 1) * size else b""
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path} cannot be read ({error})") from error
    if len(content) != claimed:
        raise ConfigError(f"{path} is no idx file, or incomplete: its header claims {claimed} bytes of numbers")
    return np.frombuffer(content, dtype=dtype).reshape(shape).astype(dtype.newbyteorder("="))
