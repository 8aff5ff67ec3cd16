"""MNIST (LeCun, Cortes and Burges, 1998; 28x28 pixels in 0..255).

It is read from the folder in `CERTBENCH_MNIST`, which holds the four files of its first publication. Without that
variable, scikit-learn downloads it once from OpenML and keeps it.
"""

import hashlib
import importlib.util
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from certbench.errors import ConfigError
from certbench.models.data.base import Dataset
from certbench.models.data.idx import array_of

MNIST = {
    "train": ("train", slice(0, 60_000), "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b"),
    "test": ("t10k", slice(60_000, 70_000), "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b"),
}
"""Splits: the start of the file names, the rows among all 70000, and the sha256 of pixels and then labels as bytes."""

DONE = ("pixels divided by 255, channels first",)
"""Sentences that say what is done to the pixels."""


def read_mnist(split: str) -> Dataset:
    """Read MNIST as `(1, 28, 28)` in [0, 1], in its order, 60000 for training, 10000 for tests; check its sha256."""
    start, rows, sha256 = MNIST[split]
    folder = os.environ.get("CERTBENCH_MNIST")
    if folder:
        images, labels = (_idx(Path(folder), f"{start}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    else:
        images, labels = (array[rows] for array in _openml())
    if hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() != sha256:
        raise ConfigError(f"the data in {folder or 'OpenML'} is not MNIST, or incomplete, or in another order")
    inputs = torch.from_numpy(images.reshape(-1, 1, 28, 28).astype(np.float32) / np.float32(255))
    return Dataset(f"mnist/{split}", inputs, torch.from_numpy(labels.astype(np.int64)), 10, done=DONE)


def _idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """Read an array of bytes from an idx file, packed by gzip or not."""
    packed, path = folder / f"{name}.gz", folder / name
    if not path.is_file() and not packed.is_file():
        raise ConfigError(f"neither {path} nor {packed.name} can be read; see CERTBENCH_MNIST")
    try:
        return array_of(path if path.is_file() else packed)
    except ConfigError as error:
        raise ConfigError(f"{error}; see CERTBENCH_MNIST") from error


def _openml() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Download all 70000 images and labels."""
    from sklearn.datasets import fetch_openml  # 1.6 s

    parser = "pandas" if importlib.util.find_spec("pandas") else "liac-arff"  # the latter takes a minute or two
    try:
        found = fetch_openml("mnist_784", version=1, as_frame=False, parser=parser)
    except (OSError, ValueError) as error:  # no network; OpenML's own errors are ValueErrors
        raise ConfigError(
            f"MNIST cannot be downloaded from OpenML ({error}); get its four files train-images-idx3-ubyte.gz, "
            "train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz, and let the "
            "environment variable CERTBENCH_MNIST name their folder"
        ) from error
    return found.data.astype(np.uint8), found.target.astype(np.uint8)
