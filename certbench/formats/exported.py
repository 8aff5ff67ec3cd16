"""Programs of `torch.export` in `.pt2` files."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from certbench.core import heads
from certbench.errors import ConfigError
from certbench.formats.one_by_one import for_batches


def opened(
    path: Path, input_shape: Sequence[int] | None, output: int | str | None, trust: bool
) -> tuple[nn.Module, tuple[int, ...], int | str | None]:
    """Return the module of an exported program, and the shape of one input, as `certbench.formats.WHOLE` wants it.

    Raises:
        ConfigError: the file is damaged, or no exported program, or takes other inputs.
    """
    del trust
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    try:
        program = torch.export.load(path)
    except Exception as error:  # a damaged file may end in any exception
        said = str(error).partition("\n")[0]
        raise ConfigError(
            f"{path} cannot be read as a program of torch.export: {type(error).__name__}: {said}"
        ) from error
    inputs = [node.meta["val"] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    if len(inputs) != 1 or not isinstance(inputs[0], torch.Tensor):
        raise ConfigError(f"{path} takes {len(inputs)} inputs; a classifier takes one tensor")
    shape = tuple(int(size) if isinstance(size, int) else None for size in inputs[0].shape[1:])
    given = None if input_shape is None else (*input_shape,)
    if None in shape and given is None:
        raise ConfigError(f"{path} leaves the shape of an input open; give the shape of one input")
    if given is not None and (
        len(given) != len(shape) or any(a not in (None, b) for a, b in zip(shape, given, strict=True))
    ):
        raise ConfigError(f"{path} takes inputs of shape {shape}, not {given}")
    one = given or tuple(size for size in shape if size is not None)
    module = heads.ready(program.module(), one, None, str(path))
    return for_batches(module, one, str(path)), one, output
