"""Data sets in a user's .npz file."""

import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certbench.errors import ConfigError
from certbench.models.data.found import INPUTS, LABELS, PACKED, Found, one_of
from certbench.models.data.npy import check_header
from certbench.models.data.source import Source


def read_npz(path: Path, source: Source) -> Found:
    """Read a `.npz` file with an array of inputs (`inputs`, `x` or `images`) and one of labels (`labels` or `y`).

    The class count is that of its number `num_classes`, if it has one.

    Raises:
        ConfigError: the file is damaged or holds something else.
    """
    names = names_of(path)
    inputs = one_of(INPUTS, source.features if isinstance(source.features, str) else None, names, path)
    if isinstance(source.features, tuple):
        raise ConfigError(f"features is the name of one array of {path}")
    labels = one_of(LABELS, None if source.labels is None else str(source.labels), names, path)
    found = _arrays(path, [inputs, labels, *(name for name in ("num_classes",) if name in names)])
    declared = found.get("num_classes")
    if declared is not None and (declared.ndim != 0 or declared.dtype.kind not in "iu"):
        raise ConfigError(f"{path}: num_classes is {declared.dtype} of shape {declared.shape}; store one integer")
    return Found(path.stem, found[inputs], found[labels], None if declared is None else int(declared))


def scale_of_before(path: Path) -> float | None:
    """Return the scale with which a run of before read a `.npz` file: bytes were divided by 255 unasked."""
    with suppress(ConfigError):
        if path.suffix == ".npz" and path.is_file():
            names = names_of(path)
            name = one_of(INPUTS, None, names, path)
            return 1 / 255 if _arrays(path, [name])[name].dtype == np.uint8 else None
    return None


def names_of(path: Path) -> list[str]:
    """List the arrays of a `.npz` file.

    Raises:
        ConfigError: the file cannot be read.
    """
    _arrays(path, [])
    with zipfile.ZipFile(path) as file:
        return [name.removesuffix(".npy") for name in file.namelist() if name.endswith(".npy")]


def _arrays(path: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    """Read some arrays of the file; refuse pickles, because they run code when opened."""
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
    except (
        OSError, ValueError, EOFError, TypeError, RuntimeError, SyntaxError, NotImplementedError, zipfile.BadZipFile,
        zlib.error,
    ) as error:  # fmt: skip
        raise ConfigError(
            f"{path} cannot be read ({error}); write it with np.savez(path, inputs=..., labels=...), "
            "from arrays of numbers, not of objects"
        ) from error
