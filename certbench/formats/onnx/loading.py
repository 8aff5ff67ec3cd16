"""Loading of an ONNX file as a module that is compared with onnxruntime."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from certbench.core.registry import unknown
from certbench.errors import ConfigError
from certbench.formats.onnx.comparison import compare, runs_in_batches
from certbench.formats.onnx.files import read
from certbench.formats.onnx.folding import SIZES, Value, Walk, constants, fused
from certbench.formats.onnx.module import OnnxModule

FLOATS = {1: torch.float32, 11: torch.float64}
"""Types of numbers that an input may have, by their codes in ONNX."""


def load(path: str | Path, *, input_shape: Sequence[int] | None = None, output: int | str | None = None) -> OnnxModule:
    """Load an ONNX file as a module `(n, *input_shape) -> (n, outputs)`, in eval mode, compared with onnxruntime.

    Batches of any size are run, whatever size the file is written for: each input gets the outputs that the file gives
    for it. Where its graph mixes the inputs of a batch, inputs are run one by one.

    Args:
        path: the file, `.onnx` or `.onnx.gz`.
        input_shape: shape of one input; needed where the file leaves it open. Another shape than the file's must have
            the same entries in the same order.
        output: name or place of the output; None: the only one that has real numbers.

    Raises:
        ConfigError: the file is damaged, has an operator that is not known here, or computes other outputs than
            onnxruntime does.
        MissingBackendError: onnx or onnxruntime is not installed.
    """
    path = Path(path)
    model = read(path)
    entry = _input(model, path)
    wanted = _output(model, output, path)
    sizes, batch_axis, declared = _sizes(entry, model, wanted, input_shape, path)
    opened = _Opened(model, entry.name, wanted, FLOATS[entry.type.tensor_type.elem_type], declared)
    try:
        module = opened.module(sizes, batch_axis)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    compare(module, path, entry.name, wanted, declared if batch_axis else 0, opened.dtype)
    return module


def opened(
    path: Path, input_shape: Sequence[int] | None, output: int | str | None, trust: bool
) -> tuple[OnnxModule, tuple[int, ...], None]:
    """Return the module of a file, and the shape of one input, as `certbench.formats.WHOLE` wants it."""
    del trust  # an ONNX file has no code of its own
    module = load(path, input_shape=input_shape, output=output)
    return module, module.input_shape if input_shape is None else (*input_shape,), None


@dataclass(frozen=True)
class _Opened:
    """A graph, and which input and output of it are meant."""

    model: Any
    input: str
    output: str
    dtype: torch.dtype
    declared: int | None

    def module(self, sizes: tuple[int, ...], batch_axis: bool) -> OnnxModule:
        """Make the module, for whole batches if that is what the graph allows; in float64 if a constant is."""
        made = self._made(sizes, batch_axis)
        return made.double() if any(part.dtype == torch.float64 for part in made.parameters()) else made

    def _made(self, sizes: tuple[int, ...], batch_axis: bool) -> OnnxModule:
        singles = batch_axis and self.declared in (None, 1)
        if not batch_axis or singles:
            alone = (1, *sizes) if batch_axis else sizes
            walk, found = self.walk(alone, 1)
            one = fused([walk], [found], sizes, alone).eval()
            if not batch_axis:
                return one
        try:
            walks, ends = zip(*(self.walk((n, *sizes), n) for n in SIZES), strict=True)
            many = fused(walks, ends, sizes, None).eval()
            reason = runs_in_batches(many, one if singles else None)
        except ConfigError as error:
            reason = str(error)
        if reason is None:
            return many
        if singles:
            return one
        raise ConfigError(f"it is written for {self.declared} inputs at once, and cannot be run for others: {reason}")

    def walk(self, shape: Sequence[int], n: int) -> tuple[Walk, Value]:
        """Walk through the graph with an input of a shape."""
        opsets = {part.domain: part.version for part in self.model.opset_import}
        walk = Walk(opsets, n, self.declared)
        values: dict[str, Any] = constants(self.model.graph)
        values[self.input] = walk.input(shape, self.dtype)
        walk.through(_needed(self.model.graph, self.output), values)
        found = values[self.output]
        if isinstance(found, ConfigError):
            raise found
        if not isinstance(found, Value):
            raise ConfigError(f"its output {self.output!r} does not depend on the input")
        return walk, found


def _needed(graph: Any, output: str) -> list[Any]:
    """Return the nodes that an output needs, in their order."""
    wanted, found = {output}, []
    for node in reversed(graph.node):
        if wanted & {*node.output}:
            found.append(node)
            wanted |= {*node.input}
            for part in node.attribute:  # branches use what stands outside them
                for inner in (part.g, *part.graphs):
                    wanted |= {name for step in inner.node for name in step.input} | {o.name for o in inner.output}
    return found[::-1]


def _input(model: Any, path: Path) -> Any:
    """Return the one input that is no stored tensor."""
    stored = {part.name for part in model.graph.initializer}
    inputs = [part for part in model.graph.input if part.name not in stored]
    if len(inputs) != 1:
        names = ", ".join(part.name for part in inputs) or "none"
        raise ConfigError(f"{path} has {len(inputs)} inputs ({names}); a classifier has one")
    kind = inputs[0].type.tensor_type.elem_type
    if kind not in FLOATS:
        import onnx

        name = onnx.TensorProto.DataType.Name(kind).lower() if kind else "no tensor"
        raise ConfigError(f"{path}: its input {inputs[0].name!r} is {name}; export it with float32 or float64 inputs")
    return inputs[0]


def _output(model: Any, output: int | str | None, path: Path) -> str:
    """Return the name of the output that is meant; of a map from labels to numbers, the numbers."""
    names = [part.name for part in model.graph.output]
    if isinstance(output, int):
        if not -len(names) <= output < len(names):
            raise ConfigError(f"{path} has {len(names)} outputs: {', '.join(names)}")
        return _output(model, str(names[output]), path)
    made = {name: node for node in model.graph.node for name in node.output}
    maps = {name: made[name].input[0] for name in names if name in made and made[name].op_type == "ZipMap"}
    real = [part.name for part in model.graph.output if part.type.tensor_type.elem_type in FLOATS or part.name in maps]
    if output is None:
        if len(real) != 1:
            what = (
                f"outputs with real numbers: {', '.join(real)}; say which by output"
                if real
                else (f"no output with real numbers, only {', '.join(names)}; export scores or logits, not labels")
            )
            raise ConfigError(f"{path} has {what}")
        output = real[0]
    if output not in names:
        raise ConfigError(f"{path}: " + unknown("output", str(output), names))
    if output not in real:
        raise ConfigError(f"{path}: the output {output!r} has no real numbers; export scores or logits, not labels")
    return str(maps.get(output, output))


def _sizes(
    entry: Any, model: Any, wanted: str, given: Sequence[int] | None, path: Path
) -> tuple[tuple[int, ...], bool, int | None]:
    """Return the shape of one input, whether there is a batch axis before it, and for how many inputs the file is."""
    kind = entry.type.tensor_type
    given = None if given is None else (*given,)
    axes = [axis.dim_value if axis.dim_value > 0 else None for axis in kind.shape.dim]
    if not kind.HasField("shape"):
        if given is None:
            raise ConfigError(f"{path} does not say the shape of its input; give the shape of one")
        axes = [None, *given]
    ends = [part.type.tensor_type.shape.dim for part in model.graph.output if part.name == wanted]
    first = ends[0][0].dim_value if ends and len(ends[0]) else 0
    batch_axis = len(axes) > 1 and (axes[0] in (None, 1) or first in (0, axes[0])) and given != tuple(axes)
    rest = axes[1:] if batch_axis else axes
    declared = axes[0] if batch_axis else None
    if None in rest:
        fits = (
            given is not None
            and len(given) == len(rest)
            and all(a in (None, b) for a, b in zip(rest, given, strict=True))
        )
        if not fits or given is None:
            shown = ", ".join("?" if axis is None else str(axis) for axis in rest)
            raise ConfigError(f"{path} leaves the shape of an input open: ({shown}); give the shape of one input")
        return given, batch_axis, declared
    own = tuple(axis for axis in rest if axis is not None)
    if given is not None and not same_entries(own, given):
        raise ConfigError(f"{path} takes inputs of shape {own}, which {given} does not fit")
    return own, batch_axis, declared


def same_entries(own: Sequence[int], given: Sequence[int]) -> bool:
    """Say whether two shapes are one list of entries in one order: equal without axes of length 1, or one is flat."""
    a, b = [n for n in own if n != 1], [n for n in given if n != 1]
    return a == b or (min(len(a), len(b)) == 1 and _product(a) == _product(b))


def _product(sizes: Sequence[int]) -> int:
    return int(torch.tensor([*sizes]).prod())
