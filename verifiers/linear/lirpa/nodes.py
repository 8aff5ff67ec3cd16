"""Nodes of auto-LiRPA's graph: which are affine, which feed a nonlinear node, and which are bounded wrongly."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.core.classifier import Classifier
from certbench.core.threat import ThreatModel
from certbench.errors import UnsupportedError


def refuse_branches(classifier: Classifier) -> None:
    """Refuse a module whose Python code looks at its input's values: a trace has only one side of a branch."""
    example = torch.zeros(1, *classifier.input_shape, dtype=classifier.dtype, device=classifier.device)
    jit: Any = torch.jit  # without annotations
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            jit.trace(classifier.module, example, check_trace=False)
        except RuntimeError as error:
            raise UnsupportedError(f"{classifier.name} cannot be traced: {error}") from error
    for warning in said:
        # Shape annotations that are checked at run time look at sizes, which do not change.
        if issubclass(warning.category, jit.TracerWarning) and Path(warning.filename).parent.name != "jaxtyping":
            reason = str(warning.message).partition(". ")[0]
            raise UnsupportedError(
                f"{classifier.name} cannot be traced for every input ({warning.filename}:{warning.lineno}): {reason}"
            )


def refuse_known_wrong(bounded: Any) -> None:
    """Refuse layers whose bounds in auto-LiRPA 0.3 are known to be those of another layer."""
    for node in nonlinear(bounded):
        if type(node).__name__ == "BoundLeakyRelu":
            slope = float(getattr(node, "leaky_alpha", node.alpha))  # its name after 0.3, and in 0.3
            if not 0 <= slope <= 1:
                raise UnsupportedError(f"auto-LiRPA bounds LeakyReLU for slopes in [0, 1], not {slope:g}")
    for node in _dependent(bounded):
        if type(node).__name__ == "BoundAveragePool":
            kernel, stride, padding = (
                [*_flat_numbers(getattr(node, key))] for key in ("kernel_size", "stride", "padding")
            )
            if kernel != stride or any(padding):
                raise UnsupportedError(
                    "auto-LiRPA bounds average pooling only where windows neither overlap nor are padded"
                )


def _flat_numbers(value: Any) -> Iterator[int]:
    yield from value if isinstance(value, list | tuple) else [value, value]


AFFINE = frozenset(
    {
        "BoundAdd",
        "BoundAveragePool",
        "BoundBatchNormalization",
        "BoundConv",
        "BoundFlatten",
        "BoundGlobalAveragePool",
        "BoundIdentity",
        "BoundInput",
        "BoundLinear",
        "BoundNeg",
        "BoundReshape",
        "BoundSqueeze",
        "BoundSub",
        "BoundTranspose",
        "BoundUnsqueeze",
    }
)
"""Nodes of auto-LiRPA's graph that are affine in their inputs. Products and quotients are if one side is constant."""


def _depends(node: Any) -> bool:
    """Say whether a node's value depends on the network's input; a shape does not."""
    name = type(node).__name__
    return name == "BoundInput" or (name != "BoundShape" and any(_depends(before) for before in node.inputs))


def _is_affine(node: Any) -> bool:
    """Say whether a node that depends on the network's input is affine in it."""
    name = type(node).__name__
    inputs = [before for before in node.inputs if _depends(before)]
    if name in ("BoundMul", "BoundDiv"):
        if len(inputs) != 1 or inputs[0] is not node.inputs[0]:
            return False
    elif name not in AFFINE:
        return False
    return all(_is_affine(before) for before in inputs)


def _dependent(bounded: Any) -> list[Any]:
    return [node for node in bounded._modules.values() if _depends(node)]


def nonlinear(bounded: Any) -> list[Any]:
    """List the nodes that depend on the input and are not affine."""
    return [node for node in _dependent(bounded) if type(node).__name__ not in AFFINE | {"BoundMul", "BoundDiv"}]


def first_layer(
    bounded: Any, input_shape: tuple[int, ...], threat: ThreatModel
) -> tuple[dict[str, Float[Tensor, "..."]], bool]:
    """Return the nodes at the end of the affine part, with their rows' dual norms, and whether logits are affine."""
    affine = _is_affine(bounded.final_node())
    if threat.p == math.inf:  # the box: interval arithmetic and backward bounds start from it directly
        return {}, affine
    names = {
        before.name
        for node in _dependent(bounded)
        if not _is_affine(node)
        for before in node.inputs
        if before.inputs and _depends(before) and _is_affine(before)
    }
    device = next(bounded.parameters()).device
    eye = torch.eye(math.prod(input_shape), dtype=torch.float64, device=device)
    first: dict[str, Tensor] = {}
    with torch.no_grad():
        for name in sorted(names):
            constant = bounded(torch.zeros(1, *input_shape, dtype=torch.float64, device=device), final_node_name=name)
            total = torch.zeros_like(constant[0])
            for part in torch.split(eye, 256):
                moved = bounded(part.view(-1, *input_shape), final_node_name=name)
                columns = (moved - constant).abs() + 1e-13 * (moved.abs() + constant.abs())  # what cancels is rounded
                columns = columns.clamp(min=1e-150)  # so that the square does not underflow
                total = torch.maximum(total, columns.amax(0)) if threat.p == 1 else total + (columns**2).sum(0)
            first[name] = (total if threat.p == 1 else total.sqrt()) * (1 + 1e-9)  # rounding of the differences
    return first, affine


def layer_nodes(bounded: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the bounds of every activation's input that the last computation used."""
    inputs = [before for node in nonlinear(bounded) for before in node.inputs if _depends(before)]
    return {node.name: (node.lower.detach(), node.upper.detach()) for node in inputs if node.inputs}
