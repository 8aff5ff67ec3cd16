"""TorchScript files, and pickled modules of whoever is trusted."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from certbench.core.program import Program
from certbench.errors import ConfigError
from certbench.formats.checkpoints import is_script, read, states
from certbench.formats.one_by_one import for_batches


def opened(
    path: Path, input_shape: Sequence[int] | None, output: int | str | None, trust: bool
) -> tuple[nn.Module, tuple[int, ...], int | str | None]:
    """Return the module of a file in eval mode, and the shape of one input, as `certbench.formats.WHOLE` wants it.

    Raises:
        ConfigError: the file is damaged, or holds weights alone, or a pickled module that is not trusted.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    if is_script(path):
        try:
            module: Any = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        except Exception as error:  # a damaged file may end in any exception
            said = str(error).partition("\n")[0]
            raise ConfigError(f"{path} cannot be read as a TorchScript file: {said}") from error
        module = Program(module, sha256(path.read_bytes()).hexdigest())
    else:
        module = read(path, trust)
    if not isinstance(module, nn.Module):
        kind = "weights alone" if any(True for _ in states(module)) else f"a {type(module).__name__}"
        raise ConfigError(
            f"{path} holds {kind}, not a whole model; write factory: module:function, which makes the network, and "
            f"weights: {path}"
        )
    if input_shape is None:
        raise ConfigError(f"{path} does not say the shape of an input; give the shape of one, for example 3,32,32")
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return for_batches(module, (*input_shape,), str(path)), (*input_shape,), output
