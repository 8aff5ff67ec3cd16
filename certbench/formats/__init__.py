"""Formats of users' models: files of weights, files of whole models, and black boxes.

To add a format of weights: write its file here, with a function that fills a module from a path and raises
`ConfigError` for a file that does not fit, and its line in `TABLE`. To add a format of whole models: a function from a
path, the shape of one input or None, and the output that is meant or None, to the module in eval mode, the shape of one
input, and the output that `Classifier` still has to take; and its line in `WHOLE`.
"""

import importlib
from pathlib import Path

from torch import nn

from certbench.errors import ConfigError

TABLE = {".safetensors": "certbench.formats.safetensors:fill"}
"""Formats of weights: the suffix, and the function as `module:function`."""

WHOLE = {
    ".onnx": "certbench.formats.onnx.loading:opened",
    ".onnx.gz": "certbench.formats.onnx.loading:opened",
}
"""Formats of whole models: the suffix, and the function as `module:function`."""

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
"""Suffixes of pickles, which are refused."""

CONVERT = (
    "pickles run code when opened, so convert it once, where you trust it: "
    "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
)
"""Advice for users who have a pickle."""


def suffix_of(path: Path) -> str:
    """Return the suffix of a file in small letters; one of `.gz` belongs to the suffix before it."""
    suffixes = [part.lower() for part in path.suffixes]
    return "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def is_whole(path: str | Path) -> bool:
    """Say whether a file's name is that of a format of whole models."""
    return suffix_of(Path(path)) in WHOLE


def fill(module: nn.Module, path: Path) -> None:
    """Load every parameter and buffer of a module from a file; read an unknown suffix as safetensors.

    Raises:
        ConfigError: there is no such file, or it does not fit.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    if path.suffix not in TABLE and path.suffix in PICKLES:
        raise ConfigError(f"{path} is a pickle, not a safetensors file; {CONVERT}")
    name, _, function = TABLE.get(path.suffix, TABLE[".safetensors"]).partition(":")
    getattr(importlib.import_module(name), function)(module, path)
