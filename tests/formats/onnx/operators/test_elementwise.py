"""Functions of each entry give what onnxruntime gives, in all versions of the operators."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from certbench.errors import ConfigError
from tests.support.onnx_files import numbers, single

PLAIN = (
    "Relu", "Sigmoid", "Tanh", "Exp", "Abs", "Neg", "Sin", "Cos", "Erf", "Atan", "Softplus", "Softsign", "HardSwish",
    "Mish", "LeakyRelu", "Elu", "Selu", "Celu", "HardSigmoid", "Identity", "Log", "Sqrt", "Reciprocal", "Sign", "Floor",
)  # fmt: skip


@pytest.mark.parametrize("operator", PLAIN)
def test_functions(tmp_path: Path, operator: str) -> None:
    assert single(tmp_path, operator, (3,), opset=18).alone is None


@pytest.mark.parametrize(
    ("operator", "attributes", "opset"),
    [
        ("LeakyRelu", {"alpha": 0.3}, 17),
        ("LeakyRelu", {"alpha": 0.3}, 6),
        ("Elu", {"alpha": 0.5}, 17),
        ("Selu", {"alpha": 1.5, "gamma": 2.0}, 17),
        ("Celu", {"alpha": 0.7}, 17),
        ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}, 17),
        ("ThresholdedRelu", {"alpha": 0.2}, 17),
        ("Shrink", {"bias": 0.1, "lambd": 0.3}, 17),
        ("Gelu", {}, 20),
        ("Gelu", {"approximate": "tanh"}, 20),
        ("Clip", {"min": -0.5, "max": 0.7}, 6),
        ("Clip", {"max": 0.7}, 6),
    ],
)
def test_functions_with_attributes(tmp_path: Path, operator: str, attributes: Any, opset: int) -> None:
    assert single(tmp_path, operator, (3, 4), opset=opset, **attributes).alone is None


@pytest.mark.parametrize(
    ("operator", "constant", "opset", "attributes"),
    [
        ("Add", numbers(4), 17, {}),
        ("Sub", numbers(3, 1), 17, {}),
        ("Mul", np.float32(2.5), 17, {}),
        ("Div", numbers(1, 3, 4), 17, {}),
        ("Pow", np.float32(2), 17, {}),
        ("Pow", np.float32([3]), 17, {}),
        ("Max", numbers(3, 4), 17, {}),
        ("Min", np.float32(0.1), 17, {}),
        ("Sum", numbers(3, 4), 17, {}),
        ("Mean", numbers(3, 4), 17, {}),
        ("PRelu", numbers(3, 1), 17, {}),
        ("PRelu", numbers(4), 17, {}),
        ("PRelu", numbers(1), 17, {}),
        ("PRelu", numbers(3, 4), 17, {}),
    ],
)
def test_operators_with_a_constant(tmp_path: Path, operator: str, constant: Any, opset: int, attributes: Any) -> None:
    assert single(tmp_path, operator, (3, 4), constant, opset=opset, **attributes).alone is None


def test_clips_with_one_bound(tmp_path: Path) -> None:
    single(tmp_path, "Clip", (3,), None, np.float32(0.2))
    single(tmp_path, "Clip", (3,), np.float32(-0.2))
    single(tmp_path, "Clip", (3,))


def test_attributes_that_are_not_known_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Gelu \(node 'y', domain 'com.microsoft'\) has the attribute 'odd'"):
        single(tmp_path, "Gelu", (3,), domain="com.microsoft", odd=1)
