"""The table of ONNX operators. A new one is a function and a line in the table of its file."""

from certbench.formats.onnx.operators import elementwise, layers, learners, matrices, recurrent, shapes
from certbench.formats.onnx.operators.base import Operator

TABLE: dict[tuple[str, str], Operator] = {
    **elementwise.TABLE,
    **matrices.TABLE,
    **shapes.TABLE,
    **layers.TABLE,
    **recurrent.TABLE,
    **learners.TABLE,
}
"""Operators by their domain and name; the domain of ONNX itself is empty, and `ml` is `ai.onnx.ml`."""
