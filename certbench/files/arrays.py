"""Files of numbers as NumPy writes them, `.npy` and `.npz`: nothing in them runs, and no header is believed."""

import math
import os
import zipfile
import zlib
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from certbench.errors import ConfigError

PACKED = 1032
"""Maximum factor by which deflate packs; a file that claims more bytes does not hold them."""

BROKEN = (
    OSError, ValueError, EOFError, TypeError, RuntimeError, SyntaxError, NotImplementedError, LookupError, MemoryError,
    OverflowError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy and zipfile raise for a file that is damaged, or whose numbers do not fit into memory."""


def open_npy(path: Path) -> NDArray[Any]:
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
    except BROKEN as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); write it with np.save(path, array), from an array of numbers"
        ) from error
    return found


def names_of(path: Path) -> list[str]:
    """List the arrays of a `.npz` file.

    Raises:
        ConfigError: the file cannot be read.
    """
    read_npz(path, [])
    with zipfile.ZipFile(path) as file:
        return [name.removesuffix(".npy") for name in file.namelist() if name.endswith(".npy")]


def read_npz(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read some arrays of a `.npz` file; refuse pickles, because they run code when opened.

    Raises:
        ConfigError: the file or one of the arrays cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as file:
            for name in names:
                member = file.getinfo(f"{name}.npy")
                if member.file_size > PACKED * member.compress_size + 64:
                    raise ValueError(f"{name} claims {member.file_size} bytes, packed in {member.compress_size}")
                with file.open(member) as opened:
                    check_header(opened, member.file_size)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except BROKEN as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); write it with np.savez(path, inputs=..., labels=...), "
            "from arrays of numbers, not of objects"
        ) from error


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
