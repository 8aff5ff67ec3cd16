"""Recurrent layers give what onnxruntime gives: their gates stand in another order there."""

from pathlib import Path

import numpy as np
import pytest

from certbench.errors import ConfigError
from certbench.formats.onnx.loading import load
from tests.support.onnx_files import numbers, write

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("operator", GATES)
def test_recurrent_layers(tmp_path: Path, operator: str, direction: str) -> None:
    pytest.importorskip("onnxruntime")
    n, count = 3 * GATES[operator], 2 if direction == "bidirectional" else 1
    constants = {
        "w": numbers(count, n, 4),
        "r": numbers(count, n, 3, seed=1),
        "b": numbers(count, 2 * n, seed=2),
        "shape": np.int64([0, -1]),
    }
    more = {"linear_before_reset": 1} if operator == "GRU" else {}
    nodes = [
        ("Transpose", "x", "t", {"perm": [1, 0, 2]}),
        (operator, "t,w,r,b", "z", {"hidden_size": 3, "direction": direction, **more}),
        ("Transpose", "z", "f", {"perm": [2, 0, 1, 3]}),
        ("Reshape", "f,shape", "y", {}),
    ]
    path = write(tmp_path / "net.onnx", nodes, ("n", 5, 4), constants)
    module = load(path)
    assert module.alone is None and module.input_shape == (5, 4)


def test_a_gru_that_resets_first_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    constants = {"w": numbers(1, 9, 4), "r": numbers(1, 9, 3)}
    path = write(tmp_path / "net.onnx", [("GRU", "x,w,r", "y", {"hidden_size": 3})], (1, 5, 4), constants)
    with pytest.raises(ConfigError, match=r"GRU.*linear_before_reset"):
        load(path)
