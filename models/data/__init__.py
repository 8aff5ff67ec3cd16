"""Data sets: one file per source, and a reader of users' `.npz` files."""

from collections.abc import Callable
from pathlib import Path

from certbench.errors import ConfigError
from certbench.models.data.base import Dataset
from certbench.models.data.digits import read_digits
from certbench.models.data.mnist import read_mnist
from certbench.models.data.npz import read_npz

__all__ = ["Dataset", "load"]

NAMED: dict[str, Callable[[str], Dataset]] = {"digits": read_digits, "mnist": read_mnist}
"""Data sets by name, each with the function that reads a split. To add one, write a file and a line here."""

FILES: dict[str, Callable[[Path], Dataset]] = {".npz": read_npz}
"""Formats of data files by suffix, each with the function that reads a file."""


def load(spec: str, split: str = "test") -> Dataset:
    """Load the data set that a specification names.

    Args:
        spec: `digits`, `mnist`, or the path of a `.npz` file with an array of inputs (`inputs`, `x` or `images`;
            floats are used as they are, uint8 is divided by 255) and an array of integer class numbers (`labels` or
            `y`). The class count is the largest label plus one, unless the file has a number `num_classes`; models may
            know more classes.
        split: `train` or `test` for the digits and MNIST. A file is one split, named `test`.

    Raises:
        ConfigError: there is no such data set, split or file, or the file holds something else.
    """
    if split not in ("train", "test"):
        raise ConfigError(f"split {split!r} is unknown; write train or test")
    if spec in NAMED:
        return NAMED[spec](split)
    path = Path(spec)
    if path.suffix not in FILES:
        known = f"{', '.join(NAMED)}, or the path of a {' or '.join(FILES)} file"
        raise ConfigError(f"data set {spec!r} is unknown; write {known}")
    if split != "test":
        raise ConfigError(
            f"{spec} is one split; leave split out, and keep training data in a file of its own", ("split",)
        )
    return FILES[path.suffix](path)
