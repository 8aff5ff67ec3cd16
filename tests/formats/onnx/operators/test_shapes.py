"""Moving of entries and reductions give what onnxruntime gives; axes are attributes or operands."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from certbench.errors import ConfigError
from tests.support.onnx_files import single

REDUCTIONS = (
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSumExp",
)  # fmt: skip


@pytest.mark.parametrize("operator", REDUCTIONS)
def test_reductions(tmp_path: Path, operator: str) -> None:
    single(tmp_path, operator, (3, 4), opset=11, axes=[1, 2], keepdims=0)
    single(tmp_path, operator, (3, 4), np.int64([-1]), opset=18)


@pytest.mark.parametrize(
    ("operator", "constants", "opset", "attributes"),
    [
        ("Flatten", (), 17, {}),
        ("Flatten", (), 17, {"axis": -2}),
        ("Reshape", (np.int64([-1, 24]),), 17, {}),
        ("Reshape", (np.int64([0, 6, -1]),), 17, {}),
        ("Transpose", (), 17, {"perm": [0, 3, 1, 2]}),
        ("Unsqueeze", (np.int64([1, -1]),), 17, {}),
        ("Unsqueeze", (), 11, {"axes": [2]}),
        ("Slice", (np.int64([1]), np.int64([-1]), np.int64([3])), 17, {}),
        ("Slice", (np.int64([3, -1]), np.int64([0, -9]), np.int64([3, 2]), np.int64([-2, -1])), 17, {}),
        ("Slice", (np.int64([-9]), np.int64([-9]), np.int64([3]), np.int64([-1])), 17, {}),
        ("Slice", (), 9, {"starts": [0, 1], "ends": [2, 99], "axes": [2, 3]}),
        ("Gather", (np.int64(-1),), 17, {"axis": 2}),
        ("Gather", (np.int64([[1, 0], [-1, 2]]),), 17, {"axis": 3}),
        ("Pad", (np.int64([0, 0, 1, 0, 0, 0, 0, 2]), np.float32(0.5)), 17, {}),
        ("Pad", (np.int64([0, 0, 1, 1, 0, 0, 1, 2]),), 17, {"mode": "reflect"}),
        ("Pad", (np.int64([0, 0, 1, 1, 0, 0, 1, 2]),), 17, {"mode": "edge"}),
        ("Pad", (np.int64([1, -1]), None, np.int64([3])), 18, {}),
        ("Pad", (), 10, {"pads": [0, 0, 1, 0, 0, 0, 0, 2], "value": 1.5}),
        ("Tile", (np.int64([1, 2, 1, 3]),), 17, {}),
        ("Expand", (np.int64([1, 1, 1, 1]),), 17, {}),
        ("DepthToSpace", (), 17, {"blocksize": 1}),
        ("SpaceToDepth", (), 17, {"blocksize": 1}),
        ("CumSum", (np.int64(3),), 17, {"reverse": 1, "exclusive": 1}),
        ("Trilu", (np.int64(1),), 17, {"upper": 0}),
    ],
)
def test_moving(tmp_path: Path, operator: str, constants: Any, opset: int, attributes: Any) -> None:
    assert single(tmp_path, operator, (2, 3, 4), *constants, opset=opset, **attributes).alone is None


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_channels_and_blocks(tmp_path: Path, mode: str) -> None:
    single(tmp_path, "DepthToSpace", (8, 2, 3), blocksize=2, mode=mode)
    single(tmp_path, "SpaceToDepth", (2, 4, 6), blocksize=2)


def test_a_squeeze(tmp_path: Path) -> None:
    single(tmp_path, "Squeeze", (3, 1, 4), np.int64([2]))
    single(tmp_path, "Squeeze", (3, 1, 4), opset=11, axes=[-2])
    with pytest.raises(ConfigError, match=r"Squeeze.*longer than 1"):
        single(tmp_path, "Squeeze", (3, 1, 4), np.int64([1]))
