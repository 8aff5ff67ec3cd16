"""A user's own model: a function that makes the module, and a file with its parameters."""

import importlib
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from certbench import formats
from certbench.core import heads
from certbench.core.classifier import Classifier
from certbench.core.registry import unknown
from certbench.errors import CertbenchError, ConfigError
from certbench.formats import hubs


def load_external(
    factory: str,
    weights: str | Path | None,
    *,
    input_shape: tuple[int, ...],
    num_classes: int | None = None,
    name: str | None = None,
    output: int | str | None = None,
    threshold: float | None = None,
    download: bool = False,
) -> Classifier:
    """Load a user's own model from a function that makes the module and a file with its parameters.

    Args:
        factory: `module:function`, or `timm:NAME` or `hf:NAME` for a network of these libraries. The module is imported
            as a script in the current directory would import it. This directory is put first on `sys.path` and stays
            there. The function takes no arguments and returns an `nn.Module`; one of `torch.jit.script`, the `module()`
            of an exported program, or with lazy layers will do.
        weights: file with every parameter and buffer of the module, and no others: safetensors, or a state dict of
            `torch.save`; None: they stay as the function makes them.
        input_shape: shape of one input, without the batch axis; it must be that of the data.
        num_classes: number of logits, 1 for a classifier of two classes with one logit; None: as many as there are.
        name: name in tables; None: the factory.
        output: which output has the logits, if there are several; see `Classifier`.
        threshold: threshold of a single logit; see `Classifier`.
        download: whether a library may download weights; else they come from this machine alone.

    Raises:
        ConfigError: any of this does not hold; the message says what, and how to correct it.
        MissingBackendError: the library is not installed.
    """
    library = hubs.split(factory)
    if library is not None:
        output = hubs.HUBS[library[0]][1] if output is None else output
        if library[0] == "timm" and weights is None and not download:
            raise ConfigError(f"{factory} has random weights; write weights: FILE, or download: true")
    elif download:
        raise ConfigError(f"download is for networks of libraries ({', '.join(hubs.HUBS)}), not for {factory}")
    make = partial(hubs.make, *library, download) if library is not None else _import(factory)
    try:
        with torch.random.fork_rng(devices=[]):
            module = make()
            if isinstance(module, nn.Module) and heads.is_lazy(module):
                module(torch.zeros(1, *input_shape))  # it makes the parameters, which the file then fills
    except CertbenchError:
        raise
    except Exception as error:
        raise ConfigError(f"{factory}() fails: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{factory}() returns {type(module).__name__}, not a torch.nn.Module{_cure(module)}")
    if weights is not None:
        formats.fill(module, weights)
    if not heads.is_exported(module):
        module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    name = name or factory
    if num_classes is None:
        num_classes = heads.logits(module, input_shape, output, name)
    return Classifier(module, input_shape, num_classes, name, output=output, threshold=threshold)


def _cure(made: object) -> str:
    return "; return program.module()" if isinstance(made, torch.export.ExportedProgram) else ""


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
