"""Matrix products and convolutions give what onnxruntime gives, with every way of padding."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.onnx_files import numbers, single


@pytest.mark.parametrize(
    ("constants", "attributes"),
    [
        ((numbers(4, 5), numbers(5)), {}),
        ((numbers(5, 4), numbers(5)), {"transB": 1}),
        ((numbers(5, 4), numbers(1, 5)), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
        ((numbers(4, 5), numbers(1)), {"alpha": 2.0}),
        ((numbers(4, 5),), {}),
    ],
)
def test_gemm(tmp_path: Path, constants: Any, attributes: Any) -> None:
    assert single(tmp_path, "Gemm", (4,), *constants, **attributes).alone is None


def test_matmul_and_einsum(tmp_path: Path) -> None:
    single(tmp_path, "MatMul", (3, 4), numbers(4, 5))
    single(tmp_path, "MatMul", (3, 4), numbers(3, 4, 2))
    single(tmp_path, "Einsum", (3, 4), numbers(4, 5), equation="nij,jk->nki")


PADS: list[dict[str, Any]] = [
    {},
    {"pads": [1, 1, 1, 1], "strides": [2, 2]},
    {"pads": [0, 1, 1, 2], "dilations": [2, 1]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    {"auto_pad": "VALID"},
]


@pytest.mark.parametrize("attributes", PADS)
def test_convolutions(tmp_path: Path, attributes: Any) -> None:
    one = single(tmp_path, "Conv", (4, 7, 6), numbers(6, 2, 3, 2), numbers(6), group=2, **attributes)
    assert one.alone is None


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 1, 1, 1], "strides": [2, 2], "output_padding": [1, 0]},
        {"pads": [0, 1, 1, 0], "strides": [2, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"output_shape": [9, 8], "strides": [2, 2]},
    ],
)
def test_transposed_convolutions(tmp_path: Path, attributes: Any) -> None:
    single(tmp_path, "ConvTranspose", (4, 4, 4), numbers(4, 2, 3, 3), numbers(4), group=2, **attributes)


def test_other_numbers_of_axes(tmp_path: Path) -> None:
    single(tmp_path, "Conv", (2, 7), numbers(3, 2, 3), pads=[1, 0])
    single(tmp_path, "Conv", (2, 4, 4, 4), numbers(3, 2, 3, 3, 3), pads=[1] * 6)
    single(tmp_path, "ConvTranspose", (2, 7), numbers(2, 3, 3), strides=[2])
