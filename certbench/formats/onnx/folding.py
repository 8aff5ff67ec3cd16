"""Folding of an ONNX graph: what does not depend on the input is computed, the rest becomes steps.

The graph is walked for batches of three sizes, with an input without numbers (a fake tensor). What is computed from
shapes then is a constant for each size; whole numbers that grow with the batch are recognised as `base + slope * n`.
"""

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from certbench.errors import CertbenchError, ConfigError
from certbench.formats.onnx.module import OnnxModule, Step
from certbench.formats.onnx.operators import TABLE
from certbench.formats.onnx.operators.base import Operator

SIZES = (7, 11, 13)
"""Sizes of the batches for which a graph is walked: primes, which are rarely the size of something else."""


@dataclass(frozen=True)
class Value:
    """A value that depends on the input: the step that makes it, which of its results, and an example."""

    step: int
    result: int
    example: Tensor


@dataclass(frozen=True)
class Call:
    """One step, for batches of one size."""

    name: str
    operator: Operator
    operands: tuple[Any, ...]
    options: Mapping[str, Any]


@dataclass
class Walk:
    """A walk through a graph with a batch of a size.

    Attributes:
        opsets: version of each domain of operators.
        batch: number of inputs.
        declared: number of inputs for which the file is written; None: any.
        calls: the steps.
        conceals: whether a result has something else than the inputs of the batch as its first axis.
    """

    opsets: Mapping[str, int]
    batch: int
    declared: int | None
    calls: list[Call] = field(default_factory=list)
    conceals: bool = False
    fake: Any = field(default_factory=lambda: FakeTensorMode(allow_non_fake_inputs=True))

    def input(self, shape: Sequence[int], dtype: torch.dtype) -> Value:
        """Return the input of the graph."""
        with self.fake:
            return Value(0, 0, torch.zeros(*shape, dtype=dtype))

    def through(self, nodes: Sequence[Any], values: dict[str, Any]) -> None:
        """Walk through nodes, whose order is that of their use, and add their results to the values by name.

        Raises:
            ConfigError: an operator is not known here.
        """
        for node in nodes:
            self._node(node, values)

    def _node(self, node: Any, values: dict[str, Any]) -> None:
        import onnx

        where = f"{node.op_type} (node {node.name or node.output[0]!r}, domain {node.domain or 'ai.onnx'!r})"
        lost = [name for name in node.input if name and name not in values]
        if lost:
            raise ConfigError(f"the ONNX operator {where} takes {lost[0]!r}, which nothing makes before it")
        given = [values[name] if name else None for name in node.input]
        options = {part.name: onnx.helper.get_attribute_value(part) for part in node.attribute}
        if node.op_type == "If" and not node.domain:
            self._branch(node, given[0], options, values, where)
            return
        operator = TABLE.get((node.domain.replace("ai.onnx.ml", "ml").replace("ai.onnx", ""), node.op_type))
        if operator is None:
            raise ConfigError(f"the ONNX operator {where} is not known here")
        options = self._options(operator, node, options, where)
        try:
            found = self._apply(operator, node, given, options)
        except CertbenchError as error:
            raise ConfigError(f"the ONNX operator {where}: {error}") from error
        except Exception as error:
            said = str(error).partition("\n")[0]
            raise ConfigError(f"the ONNX operator {where} does not fit its operands: {said}") from error
        for at, name in enumerate(node.output):
            if name and at < len(found):
                values[name] = found[at]
            elif name:
                values[name] = ConfigError(f"result {at} of the ONNX operator {where} is not known here")

    def _branch(self, node: Any, condition: Any, options: Mapping[str, Any], values: Any, where: str) -> None:
        if not isinstance(condition, Tensor):
            raise ConfigError(f"the ONNX operator {where} depends on the values of the input")
        graph = options["then_branch" if bool(condition) else "else_branch"]
        inner = {**values, **constants(graph)}
        self.through(graph.node, inner)
        for name, own in zip(node.output, graph.output, strict=True):
            values[name] = inner[own.name]

    def _options(self, operator: Operator, node: Any, options: dict[str, Any], where: str) -> dict[str, Any]:
        names = parameters(operator.function)
        if "opset" in names:
            domain = node.domain if node.domain not in ("", "ai.onnx") else ""
            options["opset"] = self.opsets[domain] if domain in self.opsets else self.opsets["ai.onnx"]
        if "results" in names:
            options["results"] = len(node.output)
        read = {name: _plain(value) for name, value in options.items() if name not in operator.ignored}
        odd = sorted(read.keys() - names)
        if odd:
            raise ConfigError(f"the ONNX operator {where} has the attribute {odd[0]!r}, which is not known here")
        return read

    def _apply(self, operator: Operator, node: Any, given: list[Any], options: dict[str, Any]) -> tuple[Any, ...]:
        for part in given:
            if isinstance(part, ConfigError):
                raise part
        moving = any(isinstance(part, Value) for part in given) and not operator.shape_alone
        if operator.shape_alone:
            given = [part.example if isinstance(part, Value) else part for part in given]
        given, options = operator.settled(given, options, lambda part: getattr(part, "example", part))
        operands: list[Any] = []
        for at, part in enumerate(given):
            if at in operator.static and part is not None and not isinstance(part, Tensor | tuple):
                raise ConfigError(f"its operand {at} depends on the values of the input")
            if isinstance(part, Tensor) and (
                at in operator.static or (operator.numbers and part.dim() == 0 and moving)
            ):
                part = _plain(part.tolist())
            operands.append(part)
        if moving and self.declared not in (None, self.batch):
            operands = self._for_batch(node.op_type, operands)
        with self.fake if moving else torch.no_grad(), _quiet():
            shown = [part.example if isinstance(part, Value) else part for part in operands]
            function = operator.function if moving or operator.exact is None else operator.exact
            found = function(*shown, **options)
        results = tuple(found) if isinstance(found, tuple | list) else (found,)
        if not moving:
            return results
        self.conceals |= any(isinstance(part, Tensor) and [*part.shape[:1]] != [self.batch] for part in results)
        title = node.name or node.output[0]
        title = title if node.op_type.lower() in title.lower() else f"{node.op_type}_{title}"
        self.calls.append(Call(title, operator, tuple(operands), options))
        return tuple(Value(len(self.calls), at, result) for at, result in enumerate(results))

    def _for_batch(self, operator: str, operands: list[Any]) -> list[Any]:
        """Return operands for a batch of this size, where the file is written for another one, of k inputs.

        What is `(k, ..)` for k inputs and reshaped to `(k, ..)` keeps each input's own entries. A constant `(1, ..)`
        that is put beside the entries of one input is put beside those of each.
        """
        whole = any(isinstance(part, Value) and [*part.example.shape[:1]] == [self.batch] for part in operands)
        if whole and operator == "Reshape" and operands[1] and operands[1][0] == self.declared:
            return [operands[0], (self.batch, *operands[1][1:]), *operands[2:]]
        if whole and operator == "Concat" and self.declared == 1:
            return [
                part.expand(self.batch, *part.shape[1:]) if isinstance(part, Tensor) and len(part) == 1 else part
                for part in operands
            ]
        return operands


def constants(graph: Any) -> dict[str, Tensor]:
    """Return the tensors that a graph holds, by name."""
    from onnx import numpy_helper

    return {part.name: tensor_of(numpy_helper.to_array(part)) for part in graph.initializer}


def tensor_of(array: Any) -> Tensor:
    """Return an array as a tensor.

    Raises:
        ConfigError: torch has no such type of numbers.
    """
    try:
        return torch.from_numpy(array.copy())
    except TypeError as error:
        raise ConfigError(
            f"a tensor of the ONNX file has numbers of type {array.dtype}, which torch cannot hold"
        ) from error


def fused(walks: Sequence[Walk], outputs: Sequence[Value], input_shape: tuple[int, ...], alone: Any) -> OnnxModule:
    """Make the module of walks with batches of different sizes.

    Raises:
        ConfigError: what they do differs by more than the size of the batch.
    """
    steps: dict[str, Step] = {}
    sources, sizes = [], [walk.batch for walk in walks]
    for calls in zip(*(walk.calls for walk in walks), strict=True):
        first = calls[0]
        if any((call.operator, call.options) != (first.operator, first.options) for call in calls):
            raise ConfigError(f"{first.name} is another operator in a batch of another size")
        held: dict[str, Tensor] = {}
        moved: list[tuple[int, int]] = []
        operands = [_joined(parts, sizes, held, moved) for parts in zip(*(c.operands for c in calls), strict=True)]
        name = base = first.name.replace(".", "_")
        while name in steps:
            name = f"{base}_{len(steps)}"
        steps[name] = Step(first.operator.function, operands, first.options, held)
        sources.append((*moved,))
    output = (outputs[0].step, outputs[0].result)
    return OnnxModule(steps, sources, output, input_shape, alone, any(walk.conceals for walk in walks))


def _joined(
    parts: Sequence[Any], sizes: Sequence[int], held: dict[str, Tensor], moved: list[tuple[int, int]]
) -> tuple[Any, ...]:
    """Return one operand of a step for batches of every size, from those for some sizes."""
    first = parts[0]
    if isinstance(first, Value):
        moved.append((first.step, first.result))
        return ("value", len(moved) - 1)
    if isinstance(first, Tensor):
        name = f"operand_{len(held)}"
        axis = _batch_axis(parts, sizes)
        held[name] = first if axis is None else first.narrow(axis, 0, 1).clone()
        same = (part.dtype == first.dtype and (axis is not None or part.shape == first.shape) for part in parts)
        if not all(same) or not all(_equal(part, held[name].expand_as(part)) for part in parts):
            raise ConfigError("a constant depends on the size of the batch, or differs between its inputs")
        return ("held", name) if axis is None else ("repeated", name, axis)
    if isinstance(first, tuple):
        if len({len(part) for part in parts}) > 1:
            raise ConfigError("a list of numbers has another length in a batch of another size")
        return ("tuple", *(_joined(entries, sizes, held, moved) for entries in zip(*parts, strict=True)))
    if all(part == first for part in parts):
        return ("plain", first)
    if not all(isinstance(part, int) for part in parts):
        raise ConfigError("a number depends on the size of the batch")
    slope = (parts[1] - parts[0]) // (sizes[1] - sizes[0])
    base = parts[0] - slope * sizes[0]
    if any(base + slope * size != part for size, part in zip(sizes, parts, strict=True)):
        raise ConfigError("a number does not grow with the size of the batch")
    return ("size", base, slope)


def _equal(one: Tensor, two: Tensor) -> bool:
    return bool(((one == two) | ((one != one) & (two != two))).all())


def _batch_axis(parts: Sequence[Tensor], sizes: Sequence[int]) -> int | None:
    """Return the one axis whose length is the size of the batch, if shapes differ."""
    shapes = [part.shape for part in parts]
    if len({len(shape) for shape in shapes}) > 1:
        return None
    differ = [axis for axis, lengths in enumerate(zip(*shapes, strict=True)) if len(set(lengths)) > 1]
    if len(differ) != 1:
        return None
    return differ[0] if [shape[differ[0]] for shape in shapes] == [*sizes] else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from printing that operands do not fit, which is said in an error here."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@cache
def parameters(function: Any) -> frozenset[str]:
    """Return the names of a function's parameters; functions of torch's own, which show none, take no options."""
    try:
        return frozenset(inspect.signature(function).parameters)
    except ValueError:
        return frozenset()


def _plain(value: Any) -> Any:
    """Return an attribute or a constant as numbers, text and tuples."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list | tuple):
        return tuple(_plain(part) for part in value)
    if isinstance(value, bool | int | float | str | Tensor):
        return value
    from onnx import TensorProto, numpy_helper

    if isinstance(value, TensorProto):
        return tensor_of(numpy_helper.to_array(value))
    raise ConfigError(f"an attribute of type {type(value).__name__} is not known here")
