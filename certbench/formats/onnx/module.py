"""The module that a graph of an ONNX file becomes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Step(nn.Module):
    """One operator of the graph.

    Its operands are pairs of a word and what belongs to it:

        ("value", i)               the i-th of the values that are handed to the step
        ("held", name)             a tensor of the step
        ("repeated", name, axis)   a tensor of the step whose axis is repeated for each input of a batch
        ("size", base, slope)      the number base + slope * n in a batch of n inputs
        ("tuple", *parts)          a tuple of such operands
        ("plain", x)               a number, a text, or None
    """

    def __init__(
        self,
        function: Callable[..., Any],
        operands: Sequence[tuple[Any, ...]],
        options: Mapping[str, Any],
        held: Mapping[str, Tensor],
    ) -> None:
        """Store what is applied to what; real tensors become parameters, others buffers."""
        super().__init__()
        self.function, self.operands, self.options = function, tuple(operands), dict(options)
        for name, tensor in held.items():
            if tensor.is_floating_point():
                self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
            else:
                self.register_buffer(name, tensor)

    def forward(self, n: int, *values: Tensor) -> Any:
        """Apply the operator in a batch of n inputs."""
        return self.function(*(self.operand(part, n, values) for part in self.operands), **self.options)

    def operand(self, part: tuple[Any, ...], n: int, values: Sequence[Tensor]) -> Any:
        """Return one of the operator's arguments."""
        match part:
            case ("value", place):
                return values[place]
            case ("held", name):
                return getattr(self, name)
            case ("repeated", name, along):
                kept: Tensor = getattr(self, name)
                return kept.expand([n if axis == along else size for axis, size in enumerate(kept.shape)])
            case ("size", base, slope):
                return base + slope * n
            case ("tuple", *parts):
                return tuple(self.operand(one, n, values) for one in parts)
        return part[1]


class OnnxModule(nn.Module):
    """Runs the steps of an ONNX graph: `(n, *input_shape) -> (n, outputs)`.

    Attributes:
        input_shape: shape of one input, as the file has it.
        alone: shape in which each input is run alone; None: batches are run at once.
        conceals: whether hooks do not see each input's own numbers.
    """

    def __init__(
        self,
        steps: Mapping[str, Step],
        sources: Sequence[tuple[tuple[int, int], ...]],
        output: tuple[int, int],
        input_shape: tuple[int, ...],
        alone: tuple[int, ...] | None = None,
        conceals: bool = False,
    ) -> None:
        """Store the steps.

        Args:
            steps: the steps in their order, by name.
            sources: for each step, its values: the step that makes it (0 is the input) and which of its results it is.
            output: the value that is returned.
            input_shape: shape of one input.
            alone: shape in which each input is run alone, if the file says something else about batches than to do the
                same to each input; None: a batch is run at once.
            conceals: whether a result has something else than the inputs of a batch as its first axis.
        """
        super().__init__()
        self.steps = nn.ModuleDict(steps)
        self.sources, self.output = [*sources], output
        self.input_shape, self.alone, self.conceals = input_shape, alone, conceals or alone is not None

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n outputs"]:
        """Compute the outputs, one flat row per input."""
        rows = x if len(x) else x.new_zeros(1, *x.shape[1:])  # graphs have no empty batches in mind
        if self.alone is None:
            found = self._run(rows.reshape(len(rows), *self.input_shape)).reshape(len(rows), -1)
        else:
            found = torch.cat([self._run(row.reshape(self.alone)).reshape(1, -1) for row in rows])
        return found if len(x) else found[:0]

    def _run(self, x: Tensor) -> Tensor:
        values: list[tuple[Any, ...]] = [(x,)]
        for step, sources in zip(self.steps.values(), self.sources, strict=True):
            found = step(len(x), *(values[at][place] for at, place in sources))
            values.append(tuple(found) if isinstance(found, tuple | list) else (found,))
        result: Tensor = values[self.output[0]][self.output[1]]
        return result
