"""Weights in a safetensors file."""

from pathlib import Path

import safetensors
import safetensors.torch
from torch import nn

from certbench.errors import ConfigError
from certbench.formats import CONVERT
from certbench.formats.checkpoints import refuse_rounding


def fill(module: nn.Module, path: Path) -> None:
    """Load every parameter and buffer from a file that holds no others, and refuse to round one.

    Raises:
        ConfigError: the file is damaged, holds the parameters of another module, or is no safetensors file.
    """
    try:
        stored = safetensors.torch.load_file(path)
        own = module.state_dict()
        for key in stored.keys() & own.keys():
            refuse_rounding(key, stored[key], own[key], path)
        safetensors.torch.load_model(module, path)
    except safetensors.SafetensorError as error:
        raise ConfigError(
            f"{path} is not a safetensors file, or damaged ({error}); if it is a pickle: {CONVERT}"
        ) from error
    except RuntimeError as error:  # keys or shapes; the message lists them
        raise ConfigError(f"{path} holds the parameters of another module: {error}") from error
