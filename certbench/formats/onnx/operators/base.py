"""What the table of operators has of each: a function, and which of its operands are numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Settle = Callable[[list[Any], dict[str, Any], Callable[[Any], Any]], tuple[list[Any], dict[str, Any]]]


def as_they_are(given: list[Any], options: dict[str, Any], shown: Callable[[Any], Any]) -> Any:
    """Return operands and options as they are."""
    del shown
    return given, options


@dataclass(frozen=True)
class Operator:
    """An operator of ONNX as a function of torch.

    Attributes:
        function: gets the operands in their order, None for one that is left out, and the attributes by their names;
            `opset`, the version of the operators, and `results`, the number of results that the file names, if it has
            such parameters. An attribute that is no parameter is refused.
        static: places of operands that must not depend on the input. They are handed over as numbers and tuples.
        numbers: whether constants without an axis are handed over as numbers.
        ignored: attributes that do not change results.
        shape_alone: whether results depend on the shapes of operands alone.
        exact: function in the place of `function` where all operands are constants; None: the same one.
        settled: what is done once, when a file is loaded, to operands and options; it may look at examples.
    """

    function: Callable[..., Any]
    static: tuple[int, ...] = ()
    numbers: bool = False
    ignored: tuple[str, ...] = ()
    shape_alone: bool = False
    exact: Callable[..., Any] | None = None
    settled: Settle = as_they_are
