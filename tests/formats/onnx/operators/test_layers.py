"""Pooling, normalisation, softmax and resizing give what onnxruntime gives; versions differ where they should."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certbench.errors import ConfigError
from tests.support.onnx_files import numbers, single

WINDOWS: list[dict[str, Any]] = [
    {"kernel_shape": [2, 2], "strides": [2, 2]},
    {"kernel_shape": [3, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
]


@pytest.mark.parametrize("attributes", WINDOWS)
def test_pooling(tmp_path: Path, attributes: Any) -> None:
    single(tmp_path, "MaxPool", (2, 6, 7), **attributes)
    single(tmp_path, "AveragePool", (2, 6, 7), **attributes)
    single(tmp_path, "AveragePool", (2, 6, 7), count_include_pad=1, **attributes)


def test_pooling_of_everything(tmp_path: Path) -> None:
    single(tmp_path, "GlobalAveragePool", (2, 3, 4))
    single(tmp_path, "GlobalMaxPool", (2, 3, 4))
    single(tmp_path, "MaxPool", (2, 9), kernel_shape=[3], dilations=[2], pads=[0, 1])
    single(tmp_path, "MaxPool", (1, 8, 6), kernel_shape=[4, 2], pads=[1, 0, 3, 0], strides=[3, 3], ceil_mode=1)


def test_normalisations(tmp_path: Path) -> None:
    scale, shift, mean = (numbers(4, seed=i) for i in range(3))
    single(tmp_path, "BatchNormalization", (4, 3, 3), scale, shift, mean, np.abs(mean) + 1, epsilon=1e-3)
    single(tmp_path, "BatchNormalization", (4,), scale, shift, mean, np.abs(mean) + 1, opset=8)
    single(tmp_path, "InstanceNormalization", (4, 3, 3), scale, shift)
    single(tmp_path, "LayerNormalization", (3, 4), scale, shift)
    single(tmp_path, "LayerNormalization", (3, 4), numbers(3, 4), axis=1)
    single(tmp_path, "LRN", (5, 3, 3), size=3, alpha=0.1)


def test_groups_have_one_scale_each_before_version_21(tmp_path: Path) -> None:
    single(tmp_path, "GroupNormalization", (4, 3, 3), numbers(2), numbers(2, seed=1), num_groups=2, opset=18)
    single(tmp_path, "GroupNormalization", (4, 3, 3), numbers(4), numbers(4, seed=1), num_groups=2, opset=21)


def test_training_is_refused(tmp_path: Path) -> None:
    numbers_of_channels = [numbers(4, seed=i) for i in range(4)]
    with pytest.raises(ConfigError, match=r"BatchNormalization.*training mode; export the network in eval mode"):
        single(tmp_path, "BatchNormalization", (4,), *numbers_of_channels, training_mode=1, outputs="y,m,v")
    with pytest.raises(ConfigError, match=r"Dropout.*training mode"):
        single(tmp_path, "Dropout", (4,), np.float32(0.5), np.bool_(True))
    single(tmp_path, "Dropout", (4,), np.float32(0.5), np.bool_(False))
    single(tmp_path, "Dropout", (4,), opset=10, ratio=0.5)


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
def test_a_softmax_before_version_13_is_over_all_axes_from_one_on(tmp_path: Path, operator: str) -> None:
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    old, new = (single(tmp_path, operator, (3, 4), opset=opset)(x) for opset in (11, 13))
    assert not torch.allclose(old, new, atol=1e-3)
    single(tmp_path, operator, (3, 4), opset=11, axis=2)
    single(tmp_path, operator, (3, 4), opset=13, axis=1)


LARGER = np.float32([1, 1, 2, 2])


@pytest.mark.parametrize(
    ("operator", "constants", "opset", "attributes"),
    [
        ("Upsample", (LARGER,), 9, {"mode": "nearest"}),
        ("Resize", (LARGER,), 10, {"mode": "nearest"}),
        (
            "Resize",
            (None, LARGER),
            17,
            {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        ),
        ("Resize", (None, LARGER), 17, {"mode": "nearest"}),
        ("Resize", (None, LARGER), 17, {"mode": "linear"}),
        ("Resize", (None, np.float32([1, 1, 1.5, 1.5])), 17, {"mode": "linear"}),
        (
            "Resize",
            (None, None, np.int64([1, 2, 7, 5])),
            17,
            {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        ),
        ("Resize", (None, LARGER), 17, {"mode": "cubic"}),
        ("Resize", (None, np.float32([2, 2])), 18, {"mode": "nearest", "axes": [2, 3]}),
    ],
)
def test_resizing(tmp_path: Path, operator: str, constants: Any, opset: int, attributes: Any) -> None:
    single(tmp_path, operator, (2, 4, 4), *constants, opset=opset, batch=1, **attributes)


def test_resizing_that_torch_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Resize.*not known here"):
        single(tmp_path, "Resize", (2, 4, 4), None, LARGER, coordinate_transformation_mode="tf_crop_and_resize")
