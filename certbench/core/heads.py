"""Modules as people have them: one output of several, one logit for two classes, exported programs, lazy layers.

Each becomes a module that maps a batch of inputs to logits. What is added are ordinary modules behind the user's own,
so that whatever reads modules reads the whole.
"""

import copy
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from certbench.errors import CertbenchError, ConfigError

MOVES = {"Squeeze", "Unsqueeze", "View", "UnsafeView", "Reshape", "ReshapeAlias", "Select", "Slice", "Alias", "Clone"}
"""Names of autograd's functions that only move numbers."""


class Output(nn.Module):
    """One of the outputs of a module that returns several."""

    def __init__(self, module: nn.Module, output: int | str) -> None:
        """Take the output at a place of a sequence, or under a name of a mapping or of an object."""
        super().__init__()
        self.module, self.output = module, output

    def forward(self, x: Any) -> Any:  # a tensor, or a proxy where the module is traced
        """Return that output."""
        found = self.module(x)
        if isinstance(self.output, str) and not isinstance(found, Mapping) and hasattr(found, self.output):
            return getattr(found, self.output)  # of a named tuple, or of an object
        return found[self.output]


class Column(nn.Module):
    """Numbers `(n,)` as a column `(n, 1)`."""

    def forward(self, x: Any) -> Any:
        """Return the column."""
        return x.unsqueeze(1)


def ready(module: Any, input_shape: tuple[int, ...], output: int | str | None, name: str) -> nn.Module:
    """Return a module in eval mode, and of several outputs the one that is asked for.

    Args:
        module: the user's module.
        input_shape: shape of one input.
        output: which output, if there are several: a place or a name.
        name: what messages call the module.

    Raises:
        ConfigError: it is no module, is in training mode, or has no parameters yet; or `output` is no place or name.
    """
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{name}: {_no_module(module)}")
    if is_lazy(module):
        example = f"module(torch.zeros{(1, *input_shape)})"
        raise ConfigError(f"{name} has lazy layers without parameters; run {example} once before you wrap it")
    made = _in_mode(module, name)
    if output is None:
        return made
    if isinstance(output, bool) or not isinstance(output, int | str):
        raise ConfigError(f"{name}: output is the place or the name of one output, not {output!r}")
    return Output(made, output).eval()


def is_lazy(module: nn.Module) -> bool:
    """Say whether a module has lazy layers that have not seen an input yet."""
    return any(isinstance(part, UninitializedParameter | UninitializedBuffer) for part in _tensors(module))


def is_exported(module: nn.Module) -> bool:
    """Say whether a module is that of an exported program, whose mode is part of its graph."""
    bases = type(module).__mro__
    return isinstance(module, fx.GraphModule) and any(base.__module__.startswith("torch.export") for base in bases)


def run(module: nn.Module, x: Tensor, name: str) -> Tensor:
    """Run a module on an example, and refuse what it returns if this is no tensor.

    Raises:
        ConfigError: it fails, or returns something else; the message says what to write.
    """
    try:
        found = module(x)
    except CertbenchError:
        raise
    except Exception as error:  # the code is the user's own
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        hint = "; export it with a dynamic batch axis" if isinstance(module, fx.GraphModule) else ""
        if "indices" in said and any(isinstance(part, nn.Embedding | nn.EmbeddingBag) for part in module.modules()):
            hint = (
                "; an embedding takes integers, around which there is no norm ball: certify the vectors that it gives, "
                "with certbench.networks.embedding.embedded"
            )
        raise ConfigError(f"{name} does not take a batch of shape {tuple(x.shape)}: {said}{hint}") from error
    if isinstance(found, Tensor):
        return found
    cure = "a module returns a tensor of logits"
    if isinstance(found, Mapping):
        cure = f"write output={' or '.join(repr(key) for key in found)} for one of its entries"
    elif isinstance(found, tuple | list):
        cure = f"write output=0 for the first of its {len(found)}"
    elif hasattr(found, "logits"):
        cure = "write output='logits'"
    raise ConfigError(f"{name} returns a {type(found).__name__}, not a tensor; {cure}")


def logits(module: nn.Module, input_shape: tuple[int, ...], output: int | str | None, name: str) -> int:
    """Count a module's logits; 1 if it gives a number for each input.

    Raises:
        ConfigError: as `ready` and `run`; or it gives no vector for each input.
    """
    shape = _shape(ready(module, input_shape, output, name), input_shape, name)
    if len(shape) not in (1, 2) or shape[0] != 2:
        raise ConfigError(f"{name} gives logits of shape {shape} for two inputs, not (2, classes)")
    return shape[1] if len(shape) == 2 else 1


def _shape(module: nn.Module, input_shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Return the shape of a module's answer to two inputs of zeros."""
    with torch.no_grad():
        return tuple(run(module, _example(module, input_shape), name).shape)


def _example(module: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """Return two inputs of zeros, in the module's precision and on its device."""
    like = next((part for part in _tensors(module) if part.is_floating_point()), torch.zeros(()))
    return torch.zeros(2, *input_shape, dtype=like.dtype, device=like.device)


def two_classes(
    module: nn.Module, input_shape: tuple[int, ...], threshold: float | None, name: str
) -> tuple[nn.Module, str]:
    """Make logits (0, z - threshold) of one logit z: class 1 is predicted where z exceeds the threshold.

    A last sigmoid of an `nn.Sequential` is left out, and the threshold is carried to the other side of it.

    Args:
        module: a module that gives `(n, 1)` or `(n,)`.
        input_shape: shape of one input.
        threshold: the threshold; None: 0, or 0.5 if the module ends in a sigmoid.
        name: what messages call the module.

    Returns:
        The module, and what was left out: `sigmoid`, or nothing.

    Raises:
        ConfigError: the module gives something else, or the threshold is no number that it can exceed.
    """
    example, shape = _example(module, input_shape), _shape(module, input_shape, name)
    if shape not in ((2,), (2, 1)):
        cure = f"; write num_classes={shape[1]}" if len(shape) == 2 else ""
        raise ConfigError(f"{name} gives logits of shape {shape} for two inputs, not (2, 1) or (2,){cure}")
    sigmoid = _ends_in_sigmoid(module, example, name)
    threshold = (0.5 if sigmoid else 0.0) if threshold is None else threshold
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not math.isfinite(threshold):
        raise ConfigError(f"{name}: a threshold is a finite number, not {threshold!r}")
    if sigmoid and not 0 < threshold < 1:
        raise ConfigError(f"{name} ends in a sigmoid; its threshold lies between 0 and 1, not at {threshold:g}")
    parts, dropped = [module], ""
    if isinstance(module, nn.Sequential) and type(module[-1]) is nn.Sigmoid:
        parts, dropped = [*module.children()][:-1], "sigmoid"
        threshold = math.log(threshold) - math.log1p(-threshold)
    if len(shape) == 1:
        parts.append(Column())
    two = nn.Linear(1, 2, dtype=example.dtype, device=example.device).requires_grad_(False)
    two.weight.copy_(torch.tensor([[0.0], [1.0]]))
    two.bias.copy_(torch.tensor([0.0, -threshold], dtype=torch.float64))
    return nn.Sequential(*parts, two).eval(), dropped


def _no_module(given: Any) -> str:
    """Say what to write in place of something that is no module."""
    if isinstance(given, torch.export.ExportedProgram):
        return "an ExportedProgram is no module; write program.module()"
    if isinstance(given, type) and issubclass(given, nn.Module):
        return f"{given.__name__} is a class; write {given.__name__}(...), the module itself"
    return f"a {type(given).__name__} is no torch.nn.Module; certbench.black_box.black_box wraps other functions"


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _in_mode(module: nn.Module, name: str) -> nn.Module:
    """Return a module in eval mode; an exported program has the mode in which it was exported, whatever its flag says.

    Raises:
        ConfigError: it is in training mode.
    """
    if not any(part.training for part in module.modules()):
        return module
    if not is_exported(module):
        raise ConfigError(f"{name} is in training mode; call module.eval() before you wrap it")
    for node in module.graph.nodes:  # type: ignore[union-attr]
        schema = getattr(node.target, "_schema", None)
        names = [] if schema is None else [part.name for part in schema.arguments]
        given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        if given.get("train") is True or given.get("training") is True:
            raise ConfigError(f"{name} was exported in training mode; call model.eval() before torch.export.export")
    made = copy.deepcopy(module)
    for part in made.modules():
        part.training = False
    return made


def _ends_in_sigmoid(module: nn.Module, example: Tensor, name: str) -> bool:
    """Say whether the last thing that a module does to its numbers is a sigmoid, as autograd recorded it."""
    with torch.enable_grad():
        last: Any = run(module, example.clone().requires_grad_(), name).grad_fn
    while last is not None and _function(last) in MOVES:
        last = last.next_functions[0][0] if last.next_functions else None
    return last is not None and _function(last) == "Sigmoid"


def _function(node: Any) -> str:
    """Return the name of autograd's function without its suffix."""
    return re.sub(r"Backward\d*$", "", node.name())
