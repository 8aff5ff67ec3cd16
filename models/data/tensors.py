"""Data sets in files of `torch.save`: inputs and labels as a tuple or a dict, or each in a file of its own."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from certbench.errors import ConfigError
from certbench.models.data.found import INPUTS, LABELS, Found, one_of
from certbench.models.data.source import Source

SAVE = "write torch.save((x, y), path) with two tensors"
"""Advice for files of other things."""


def read_tensors(path: Path, source: Source) -> Found:
    """Read `(x, y)`, or a dict with names as in a `.npz` file; or x, with y in the file that `labels` names.

    Raises:
        ConfigError: the file is damaged, or holds something else.
    """
    found = _read(path)
    if source.features is not None and not isinstance(found, Mapping):
        raise ConfigError(f"{path} has no names of tensors; leave features out")
    if isinstance(found, Tensor):
        if source.labels is None:
            raise ConfigError(f"{path} has inputs alone; write labels: FILE.pt, with one integer per input")
        x, y = found, _read(Path(str(source.labels)))
    elif isinstance(found, Mapping):
        names = [str(name) for name, value in found.items() if isinstance(value, Tensor)]
        if isinstance(source.features, tuple):
            raise ConfigError(f"features is the name of one tensor of {path}")
        x = found[one_of(INPUTS, source.features, names, path)]
        y = found[one_of(LABELS, None if source.labels is None else str(source.labels), names, path)]
    elif isinstance(found, tuple | list) and len(found) == 2:
        x, y = found
    else:
        kind = f"{len(found)} things" if isinstance(found, tuple | list) else f"a {type(found).__name__}"
        raise ConfigError(f"{path} has {kind}; {SAVE}")
    return Found(path.stem, _array(x, "inputs", path), _array(y, "labels", path))


def _read(path: Path) -> Any:
    """Read a file of tensors, numbers and containers; nothing else is opened, because it may run code."""
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(f"{path} holds more than tensors, or is no file of torch.save; {SAVE}") from error
    except Exception as error:  # a damaged file may end in any exception of pickle, zip or torch
        said = str(error).partition("\n")[0]
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}: {said}); {SAVE}") from error


def _array(tensor: Any, what: str, path: Path) -> NDArray[Any]:
    """Return a tensor as an array, in memory that is there."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise ConfigError(f"{path}: {what} are no dense tensor; {SAVE}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ConfigError(
            f"{path}: {what} have shape {tuple(tensor.shape)}, but fewer numbers are stored; write x.clone()"
        )
    short = tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64)
    tensor = (tensor.detach().float() if short else tensor.detach()).resolve_conj().resolve_neg()
    found: NDArray[Any] = tensor.numpy()  # what NumPy has no type for, of fewer bits than float32, is exact in it
    return found
