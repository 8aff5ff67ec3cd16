"""Data sets in a user's .npz file."""

from contextlib import suppress
from pathlib import Path

import numpy as np

from certbench.errors import ConfigError
from certbench.files.arrays import names_of
from certbench.files.arrays import read_npz as read_arrays
from certbench.models.data.found import INPUTS, LABELS, Found, one_of
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
    found = read_arrays(path, [inputs, labels, *(name for name in ("num_classes",) if name in names)])
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
            return 1 / 255 if read_arrays(path, [name])[name].dtype == np.uint8 else None
    return None
