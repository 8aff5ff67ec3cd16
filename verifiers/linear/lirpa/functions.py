"""Functions that auto-LiRPA bounds by our own lines: all but ReLU, tanh and sigmoid, and products of two values.

Release 0.3 lacks many of them, and some of its lines are wrong (LeakyReLU with a slope outside [0, 1]).
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from certbench.networks.layers import Bilinear, RowSoftmax
from certbench.verifiers.bounds.backward import through
from certbench.verifiers.bounds.lines import Lines
from certbench.verifiers.bounds.relaxations import Function, around, image
from certbench.verifiers.linear.lirpa.release_0_3 import auto_lirpa

OPERATOR = "certbench::function"
"""Name of the operator in the trace."""


class Other(nn.Module):
    """A function that a trace shows as one operator."""

    def __init__(self, function: Function) -> None:
        """Keep the function."""
        super().__init__()
        self.function = function

    def forward(self, z: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Apply it."""
        return _Traced.apply(z, self.function, 0)  # type: ignore[no-any-return, no-untyped-call]


class _Traced(torch.autograd.Function):
    """The function, and its operator in a trace, which has the function's place in a list as attribute."""

    places: ClassVar[list[Function]] = []
    """The functions of the module that is traced."""

    @staticmethod
    def forward(context: Any, z: Tensor, function: Function, unused: int) -> Tensor:
        del context, unused
        return _value(function, z)

    @staticmethod
    def symbolic(graph: Any, z: Any, function: Function, unused: int) -> Any:
        """Write the operator."""
        del unused
        _Traced.places.append(function)
        found = graph.op(OPERATOR, z, index_i=len(_Traced.places) - 1)
        sizes = z.type().sizes()
        if sizes is not None:
            halved = [*sizes[:-1], sizes[-1] // 2] if isinstance(function, Bilinear) else sizes
            found.setType(z.type().with_sizes(halved))
        return found


@contextmanager
def traced() -> Iterator[None]:
    """Forget the functions of the module that was traced before; a trace's warnings of fixed sizes are no news."""
    _Traced.places = []
    with warnings.catch_warnings(action="ignore"):
        yield
    _Traced.places = []


@cache
def operators() -> dict[str, type[Any]]:
    """Return the operator's bounds, as auto-LiRPA takes them."""
    auto_lirpa()
    from auto_LiRPA.linear_bound import LinearBound
    from auto_LiRPA.operators import Bound

    class BoundFunction(Bound):  # type: ignore[misc]
        """A function between our own lines."""

        def __init__(self, attr: Any, inputs: Any, output_index: int, options: Any, *_: Any) -> None:
            super().__init__(attr, inputs, output_index, options)
            self.function = _Traced.places[attr["index"]]
            self.requires_input_bounds = [0]

        def forward(self, z: Tensor) -> Tensor:
            """Return the function's value."""
            return _value(self.function, z)

        def interval_propagate(self, *v: Any) -> tuple[Tensor, Tensor]:
            """Bound the function on intervals."""
            low, high = image(self.function, v[0][0].flatten(1), v[0][1].flatten(1))
            shape = self.forward(v[0][0][:1]).shape[1:]
            return low.view(-1, *shape), high.view(-1, *shape)

        def lines(self, x: Any) -> Lines:
            """Return the lines around the function between the bounds of its input."""
            return around(self.function, x.lower.flatten(1)[:, None], x.upper.flatten(1)[:, None])

        def bound_backward(self, last_lA: Any, last_uA: Any, x: Any, **_: Any) -> Any:
            """Replace the function by its lines; coefficients are (rows, n, ...)."""
            lines, shape = self.lines(x), x.lower.shape[1:]

            def replaced(a: Any, sign: int) -> tuple[Any, Any]:
                if a is None:
                    return None, 0
                if not isinstance(a, Tensor):
                    raise NotImplementedError("patches of this function")  # then the graph is made for matrices
                moved, constant = through(lines, sign * a.flatten(2).transpose(0, 1))
                return sign * moved.transpose(0, 1).reshape(*a.shape[:2], *shape), sign * constant.T

            (lower, lower_constant), (upper, upper_constant) = replaced(last_lA, 1), replaced(last_uA, -1)
            return [(lower, upper)], lower_constant, upper_constant

        def bound_forward(self, dim_in: int, x: Any) -> Any:
            """Put linear bounds of the input into the lines; coefficients are (n, inputs, ...)."""
            del dim_in
            lines, size, shape = self.lines(x), math.prod(x.lower.shape[1:]), self.forward(x.lower[:1]).shape[1:]
            if isinstance(self.function, Bilinear | RowSoftmax):
                raise NotImplementedError(f"forward bounds of a {self.function.name}")

            def mixed(slope: Tensor, low: Tensor, high: Tensor) -> Tensor:
                return slope.clamp(min=0) * low + slope.clamp(max=0) * high

            below, above = lines.lower_slope, lines.upper_slope
            starts = 0 if lines.lower_offset is None else lines.lower_offset[:, 0]
            lw, uw = (part.reshape(*part.shape[:2], size) for part in (x.lw, x.uw))
            lb, ub = x.lb.flatten(1), x.ub.flatten(1)
            return LinearBound(
                mixed(below, lw, uw).view(*lw.shape[:2], *shape),
                (mixed(below[:, 0], lb, ub) + starts).view(-1, *shape),
                mixed(above, uw, lw).view(*lw.shape[:2], *shape),
                (mixed(above[:, 0], ub, lb) + lines.upper_offset[:, 0]).view(-1, *shape),
            )

        def infer_batch_dim(self, batch_size: int, *x: Any) -> Any:
            """Return the place of the batch: that of the input."""
            del batch_size
            return x[0]

    return {OPERATOR: BoundFunction}


def _value(function: Function, z: Tensor) -> Tensor:
    """Apply a function to values of any shape; its parameters may have an entry per neuron of the flat value."""
    found = function.value(z.flatten(1))
    return found if z.dim() == 2 or isinstance(function, Bilinear) else found.view(z.shape)
