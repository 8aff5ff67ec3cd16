"""Data sets: scikit-learn's embedded scanned digits, MNIST, and any `.npz` file of a user.

Digits are those of Alpaydin and Kaynak (1998), "Optical Recognition of Handwritten Digits", UCI repository:
1797 images of 8x8 pixels in 0..16, inside the scikit-learn package, so nothing is downloaded.

MNIST (LeCun, Cortes and Burges, 1998; 28x28 pixels in 0..255) is read from a folder that `CERTBENCH_MNIST` names, with
the four files of its first publication, or else downloaded once from OpenML, by scikit-learn, which keeps it.
"""

import gzip
import hashlib
import importlib.util
import math
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from certbench.errors import ConfigError

DIGITS_TEST = 500
"""How many of the 1797 digits are the test split; see `_digits` for which ones."""

MNIST = {
    "train": ("train", slice(0, 60_000), "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b"),
    "test": ("t10k", slice(60_000, 70_000), "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b"),
}
"""Of each split: how its files begin, its rows among all 70000, and the sha256 of its pixels, then labels, as bytes."""

INPUTS = ("inputs", "x", "images")
LABELS = ("labels", "y")
"""Names under which a `.npz` may hold its arrays; each once."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled inputs, on the CPU.

    Attributes:
        name: what tables call it.
        inputs: float32; digits, MNIST and uint8 images lie in [0, 1].
        labels: int64, in `range(num_classes)`.
        num_classes: how many classes there are, also if some have no input here.
    """

    name: str
    inputs: Float[Tensor, "n ..."]
    labels: Int[Tensor, " n"]
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch axis."""
        return tuple(self.inputs.shape[1:])

    def fingerprint(self) -> str:
        """Sha256 over shapes, inputs, labels and the class count. Never over the name."""
        digest = hashlib.sha256(repr((tuple(self.inputs.shape), self.num_classes)).encode())
        for tensor in (self.inputs, self.labels):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def load(spec: str, split: str = "test") -> Dataset:
    """The data set that a specification names.

    Args:
        spec: `digits`, `mnist`, or the path of a `.npz` file with an array of inputs (`inputs`, `x` or `images`;
            floats are used as they are, uint8 is divided by 255) and an array of integer class numbers (`labels` or
            `y`). The class count is the largest label plus one, unless the file has a number `num_classes`.
        split: `train` or `test` of the digits or of MNIST. A file is one split, and goes by `test`.

    Raises:
        ConfigError: there is no such data set, split or file, or the file holds something else.
    """
    if split not in ("train", "test"):
        raise ConfigError(f"split {split!r} is unknown; write train or test")
    if spec == "digits":
        return _digits(split)
    if spec == "mnist":
        return _mnist(split)
    if not spec.endswith(".npz"):
        raise ConfigError(f"data set {spec!r} is unknown; write digits, mnist, or the path of a .npz file")
    if split != "test":
        raise ConfigError(
            f"{spec} is one split; leave split out, and keep training data in a file of its own", ("split",)
        )
    return _npz(Path(spec))


def _digits(split: str) -> Dataset:
    """Digits as `(1, 8, 8)` in [0, 1]: 1297 to train on, 500 to test.

    The split depends on the images alone, not on a random generator or on their order in scikit-learn. Within each
    class images are ranked by the sha256 of their 64 bytes; the image of rank r among n goes to place (r + 1/2) / n;
    all images are sorted by place, then class. The first 500 are the test split, in this order. So each class has
    its share of both splits, and also of the first 10, 50 or 100 test images.
    """
    from sklearn.datasets import load_digits  # 1.6 s

    digits = load_digits()
    images = digits.images.astype(np.uint8)
    hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    order = []
    for label in range(10):
        members = sorted(np.flatnonzero(digits.target == label), key=hashes.__getitem__)
        order += [((rank + 0.5) / len(members), label, index) for rank, index in enumerate(members)]
    index = np.array([index for _, _, index in sorted(order)])
    index = index[:DIGITS_TEST] if split == "test" else index[DIGITS_TEST:]
    inputs = torch.from_numpy(images[index]).float().div(16).unsqueeze(1)
    return Dataset(f"digits/{split}", inputs, torch.from_numpy(digits.target[index]).long(), 10)


def _mnist(split: str) -> Dataset:
    """MNIST as `(1, 28, 28)` in [0, 1], in its own order: 60000 to train on, 10000 to test; compared with a sha256."""
    start, rows, sha256 = MNIST[split]
    folder = os.environ.get("CERTBENCH_MNIST")
    if folder:
        images, labels = (_idx(Path(folder), f"{start}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    else:
        images, labels = (array[rows] for array in _openml())
    if hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() != sha256:
        raise ConfigError(f"what {folder or 'OpenML'} holds is not MNIST, or not whole, or not in its order")
    inputs = torch.from_numpy(images.reshape(-1, 1, 28, 28).astype(np.float32) / np.float32(255))
    return Dataset(f"mnist/{split}", inputs, torch.from_numpy(labels.astype(np.int64)), 10)


def _idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """The bytes of an idx file, packed by gzip or not, in its shape: a magic number, sizes, then bytes."""
    packed, path = folder / f"{name}.gz", folder / name
    try:
        content = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"neither {path} nor {packed.name} can be read ({error}); see CERTBENCH_MNIST") from error
    axes = content[3] if len(content) > 3 else 0
    shape = np.frombuffer(content[4 : 4 + 4 * axes], dtype=">u4").tolist()
    if content[:3] != b"\0\0\x08" or len(content) != 4 + 4 * axes + math.prod(shape):
        raise ConfigError(f"{path if path.is_file() else packed} is no idx file of bytes, or not whole")
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape)


def _openml() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """All 70000 images and labels."""
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


def _npz(path: Path) -> Dataset:
    arrays = _arrays(path)
    inputs, labels = _one_of(INPUTS, arrays, path), _one_of(LABELS, arrays, path)
    if inputs.dtype == np.uint8:
        inputs = inputs.astype(np.float32) / np.float32(255)
    if not np.issubdtype(inputs.dtype, np.floating):
        raise ConfigError(f"{path}: inputs are {inputs.dtype}; store floats, or uint8, which is divided by 255")
    if inputs.ndim < 2 or inputs.size == 0:
        raise ConfigError(f"{path}: inputs have shape {inputs.shape}; store (n, ...), with n at least 1")
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise ConfigError(f"{path}: labels are {labels.dtype} of shape {labels.shape}; store one integer per input")
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
    """Every array of the file; pickles, which run code when opened, are refused."""
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
