"""Data sets: one file per source, those of a name and those of users."""

import re
from collections.abc import Callable
from pathlib import Path

from certbench.errors import ConfigError
from certbench.models.data.base import Dataset
from certbench.models.data.digits import read_digits
from certbench.models.data.folders import read_folder
from certbench.models.data.found import Found, chosen, dataset
from certbench.models.data.hugging_face import read_hugging_face
from certbench.models.data.idx import read_idx
from certbench.models.data.mnist import read_mnist
from certbench.models.data.npy import read_npy
from certbench.models.data.npz import read_npz
from certbench.models.data.source import Source, source
from certbench.models.data.tables import read_table
from certbench.models.data.tensors import read_tensors
from certbench.models.data.torchvision import read_torchvision

__all__ = ["Dataset", "Source", "load", "source"]

NAMED: dict[str, Callable[[str], Dataset]] = {"digits": read_digits, "mnist": read_mnist}
"""Data sets by name, each with the function that reads a split. To add one, write a file and a line here."""

FILES: dict[str, Callable[[Path, Source], Found]] = {
    ".npz": read_npz,
    ".npy": read_npy,
    ".csv": read_table,
    ".tsv": read_table,
    ".pt": read_tensors,
    ".pth": read_tensors,
    ".idx": read_idx,
}
"""Formats of data files by suffix, each with the function that reads a file."""

LIBRARIES: dict[str, Callable[[str, Source], Found]] = {"torchvision": read_torchvision, "hf": read_hugging_face}
"""Libraries by the prefix of a path, each with the function that reads one of its data sets from this machine."""

IDX = re.compile(r"idx\d?(-ubyte)?(\.gz)?$")
"""End of the name of an idx file, as MNIST's `t10k-images-idx3-ubyte.gz`."""


def load(given: str | Source, split: str = "test") -> Dataset:
    """Load the data set that a specification names.

    Args:
        given: what is said about the data set, or its path alone: `digits`, `mnist`, a file of `FILES`, a folder with
            one folder of pictures per class, `torchvision:NAME:FOLDER` or `hf:FOLDER`. The class count is the largest
            label plus one, unless the source says more; models may know more classes.
        split: the part, if `given` is a path: `train` or `test` for the digits and MNIST. A file is one split, named
            `test`.

    Raises:
        ConfigError: there is no such data set, split or file, or it holds something else.
        MissingBackendError: a package that the source needs is not installed.
    """
    asked = source(path=given, split=split) if isinstance(given, str) else given
    prefix, _, rest = asked.path.partition(":")
    if prefix in LIBRARIES and rest:
        return dataset(LIBRARIES[prefix](rest, asked), asked)
    if asked.path in NAMED:
        if asked.split not in ("train", "test"):
            raise ConfigError(f"split {asked.split!r} is unknown; write train or test", ("split",))
        found = NAMED[asked.path](asked.split)
        known = sorted(set(asked.said) - {"take", "shape"})
        if known:
            raise ConfigError(f"{asked.path} has a form of its own; leave {' and '.join(known)} out", (known[0],))
        return chosen(found, asked) if asked.said else found
    path = Path(asked.path)
    read = read_folder if path.is_dir() else FILES.get(".idx" if IDX.search(path.name) else path.suffix.lower())
    if read is None:
        kinds = f"a {', '.join(FILES)} file or a folder of pictures, torchvision:NAME:FOLDER or hf:FOLDER"
        raise ConfigError(f"data set {asked.path!r} is unknown; write {', '.join(NAMED)}, or the path of {kinds}")
    if asked.split != "test":
        raise ConfigError(
            f"{path} is one split; leave split out, and keep training data in a file of its own", ("split",)
        )
    if not path.exists():
        raise ConfigError(f"there is no file {path}")
    try:
        return dataset(read(path, asked), asked)
    except MemoryError as error:
        raise ConfigError(f"{path} does not fit into memory; take fewer inputs (take: 1000)") from error
