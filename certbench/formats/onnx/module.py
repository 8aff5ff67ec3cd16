"""The module that a graph of an ONNX file becomes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Growing:
    """A whole number `base + slope * n` of a batch of n inputs."""

    base: int
    slope: int

    def of(self, n: int) -> int:
        """Return the number for a batch of n."""
        return self.base + self.slope * n


@dataclass(frozen=True)
class Repeated:
    """A constant whose axis has the length of the batch; all its parts along it are equal, and one is kept."""

    name: str
    axis: int


@dataclass(frozen=True)
class Held:
    """A constant tensor of a step, by its name in it."""

    name: str


@dataclass(frozen=True)
class Moved:
    """A value that depends on the input: which of those that are handed to the step."""

    place: int


class Step(nn.Module):
    """One operator of the graph."""

    def __init__(
        self, function: Callable[..., Any], operands: Sequence[Any], options: Mapping[str, Any], held: Mapping[str, Any]
    ) -> None:
        """Store what is applied to what: `Moved`, `Held`, `Repeated`, numbers, tuples of numbers and `Growing`, None."""
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

    def operand(self, part: Any, n: int, values: Sequence[Tensor]) -> Any:
        """Return one of the operator's arguments."""
        if isinstance(part, Moved):
            return values[part.place]
        if isinstance(part, Held):
            return getattr(self, part.name)
        if isinstance(part, Repeated):
            kept: Tensor = getattr(self, part.name)
            return kept.expand([n if axis == part.axis else size for axis, size in enumerate(kept.shape)])
        if isinstance(part, Growing):
            return part.of(n)
        return tuple(self.operand(one, n, values) for one in part) if isinstance(part, tuple) else part


class OnnxModule(nn.Module):
    """Runs the steps of an ONNX graph: `(n, *input_shape) -> (n, outputs)`.

    Attributes:
        input_shape: shape of one input, as the file has it.
        taken: shape in which one input is handed to the first step, and `alone` its shape without a batch, if inputs
            are run one by one.
    """

    def __init__(
        self,
        steps: Mapping[str, Step],
        sources: Sequence[tuple[tuple[int, int], ...]],
        output: tuple[int, int],
        input_shape: tuple[int, ...],
        alone: tuple[int, ...] | None = None,
    ) -> None:
        """Store the steps.

        Args:
            steps: the steps in their order, by name.
            sources: for each step, its values: the step that makes it (0 is the input) and which of its results it is.
            output: the value that is returned.
            input_shape: shape of one input.
            alone: shape in which each input is run alone, if the file says something else about batches than to do the
                same to each input; None: a batch is run at once.
        """
        super().__init__()
        self.steps = nn.ModuleDict(steps)
        self.sources, self.output = [*sources], output
        self.input_shape, self.alone = input_shape, alone

    @property
    def opaque_steps(self) -> bool:
        """Whether the steps' results do not show all numbers of a batch, as each input is run alone."""
        return self.alone is not None

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n outputs"]:
        """Compute the outputs, one flat row per input."""
        if self.alone is None:
            return self._run(x.reshape(-1, *self.input_shape)).reshape(len(x), -1)
        found: Tensor = torch.func.vmap(self._one)(x.reshape(-1, *self.alone))
        return found

    def _one(self, x: Tensor) -> Tensor:
        return self._run(x).reshape(-1)

    def _run(self, x: Tensor) -> Tensor:
        values: list[tuple[Any, ...]] = [(x,)]
        for step, sources in zip(self.steps.values(), self.sources, strict=True):
            found = step(len(x), *(values[at][place] for at, place in sources))
            values.append(tuple(found) if isinstance(found, tuple | list) else (found,))
        found = values[self.output[0]][self.output[1]]
        return found
