"""Operators of classical learners give what onnxruntime gives, at inputs of zeros, too."""

from pathlib import Path

import pytest

from tests.support.onnx_files import single


@pytest.mark.parametrize("norm", ["L1", "L2", "MAX"])
def test_inputs_of_zeros_are_not_divided_by_their_norm(tmp_path: Path, norm: str) -> None:
    single(tmp_path, "Normalizer", (4,), domain="ai.onnx.ml", norm=norm)
