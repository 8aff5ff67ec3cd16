"""Formats of users' models: files of weights, files of whole models, and black boxes.

To add a format of weights: write its file here, with a function that fills a module from a path and raises
`ConfigError` for a file that does not fit, and its line in `TABLE`. To add a format of whole models: a function from a
path, the shape of one input or None, the output that is meant or None, and whether the file's code is trusted, to the
module in eval mode, the shape of one input, and the output that `Classifier` still takes; and its line in `WHOLE`.
"""

import importlib
from pathlib import Path

from torch import nn

from certbench.errors import ConfigError

TABLE = {
    ".safetensors": "certbench.formats.safetensors:fill",
    ".pt": "certbench.formats.checkpoints:fill",
    ".pth": "certbench.formats.checkpoints:fill",
    ".bin": "certbench.formats.checkpoints:fill",
    ".ckpt": "certbench.formats.checkpoints:fill",
    ".model": "certbench.formats.checkpoints:fill",
}
"""Formats of weights: the suffix, and the function as `module:function`."""

WHOLE = {
    ".onnx": "certbench.formats.onnx.loading:opened",
    ".onnx.gz": "certbench.formats.onnx.loading:opened",
    ".pt2": "certbench.formats.exported:opened",
    ".pt": "certbench.formats.scripted:opened",
    ".pth": "certbench.formats.scripted:opened",
    ".ts": "certbench.formats.scripted:opened",
    ".torchscript": "certbench.formats.scripted:opened",
}
"""Formats of whole models: the suffix, and the function as `module:function`."""

CONVERT = (
    "pickles run code when opened, so convert it once, where you trust it: "
    "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
)
"""Advice for users who have a pickle."""

ARRAYS = (
    "put the arrays into the module, transposed where the layout differs, and save it: "
    "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
)
"""Advice for users who have arrays."""

CURES = {
    **dict.fromkeys((".pkl", ".pickle"), f"it is a pickle, not a file of weights; {CONVERT}"),
    **dict.fromkeys(
        (".onnx", ".onnx.gz", ".pt2"), "it is a whole model: write path: FILE, without factory and weights"
    ),
    ".mat": f"it is MATLAB's: read it once by scipy.io.loadmat, {ARRAYS}",
    **dict.fromkeys(
        (".npy", ".npz"),
        f"it holds arrays of NumPy: read them once by numpy.load, {ARRAYS}",
    ),
    **dict.fromkeys(
        (".h5", ".hdf5", ".keras", ".pb", ".tflite"),
        "it is TensorFlow's: export the model to ONNX, for example by tf2onnx",
    ),
}
"""What to do with files that are often given in place of weights, by their suffix."""


def suffix_of(path: Path) -> str:
    """Return the suffix of a file in small letters; one of `.gz` belongs to the suffix before it."""
    suffixes = [part.lower() for part in path.suffixes]
    return "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def stem_of(path: Path) -> str:
    """Return the name of a file without the suffix that `suffix_of` returns."""
    return path.name[: len(path.name) - len(suffix_of(path))]


def is_whole(path: str | Path) -> bool:
    """Say whether a file's name is that of a format of whole models."""
    return suffix_of(Path(path)) in WHOLE


def fill(module: nn.Module, given: str | Path) -> None:
    """Load every parameter and buffer of a module from a file; read an unknown suffix as safetensors.

    Args:
        module: the module that is filled.
        given: path of the file. Of a checkpoint with several state dicts, `FILE#NAME` means one.

    Raises:
        ConfigError: there is no such file, or it does not fit.
    """
    path, _, entry = (
        str(given).rpartition("#") if "#" in str(given) and not Path(given).exists() else (str(given), "", "")
    )
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"there is no file {file}")
    suffix = suffix_of(file)
    if suffix in CURES and suffix not in TABLE:
        raise ConfigError(f"{file} cannot be loaded as weights: {CURES[suffix]}")
    name, _, function = TABLE.get(suffix, TABLE[".safetensors"]).partition(":")
    load = getattr(importlib.import_module(name), function)
    if entry:
        load(module, file, entry)
    else:
        load(module, file)
