"""A user's own model: a function that makes the module, and a file with its parameters."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from certbench import formats
from certbench.core.classifier import Classifier
from certbench.core.registry import unknown
from certbench.errors import ConfigError


def load_external(
    factory: str, weights: str | Path, *, input_shape: tuple[int, ...], num_classes: int, name: str | None = None
) -> Classifier:
    """Load a user's own model from a function that makes the module and a file with its parameters.

    Args:
        factory: `module:function`. The module is imported as a script in the current directory would import it. This
            directory is put first on `sys.path` and stays there. The function takes no arguments and returns an
            `nn.Module`.
        weights: safetensors file with every parameter and buffer of the module, and no others.
        input_shape: shape of one input, without the batch axis; it must be that of the data.
        num_classes: number of logits.
        name: name in tables; None: the factory.

    Raises:
        ConfigError: any of this does not hold; the message says what, and how to correct it.
    """
    make = _import(factory)
    try:
        with torch.random.fork_rng(devices=[]):
            module = make()
    except Exception as error:
        raise ConfigError(f"{factory}() fails: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{factory}() returns {type(module).__name__}, not a torch.nn.Module")
    formats.fill(module, Path(weights))
    return Classifier(module.eval().requires_grad_(False), input_shape, num_classes, name or factory)


def _import(factory: str) -> Callable[[], object]:
    path, _, function = factory.partition(":")
    if not path or not function:
        raise ConfigError(f"factory {factory!r} is no function; write module:function, for example my_models:small_cnn")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(path)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{path}.".startswith(f"{error.name}."):
            where = f"from {os.getcwd()}; write its name without .py, with dots for folders"
            raise ConfigError(f"there is no module {path!r} to import {where}") from error
        raise ConfigError(f"importing {path!r} fails: {type(error).__name__}: {error}") from error
    made = getattr(module, function, None)
    if not callable(made):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(unknown(f"function of {path!r}", function, functions))
    return made  # type: ignore[no-any-return]
