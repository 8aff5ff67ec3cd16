import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from certbench import ConfigError
from certbench.formats.onnx.loading import load
from certbench.formats.onnx.replay import Replay
from tests.support.onnx_files import write

pytest.importorskip("onnxruntime")

WEIGHT = {"w": np.float32([[1.0, 2.0], [3.0, -1.0], [0.5, 0.25]])}
X = torch.tensor([[1.0, 2.0, 4.0], [0.5, -1.0, 0.0]])


@pytest.mark.parametrize("shape", [("n", 3), (1, 3), (2, 3), (1, 1, 3), (3,)])
def test_flat_inputs_are_run_whatever_batch_the_file_is_for(tmp_path: Path, shape: tuple[int | str, ...]) -> None:
    path = write(tmp_path / "net.onnx", [("MatMul", "x,w", "y", {})], shape, WEIGHT)
    module = load(path)
    wanted = X @ torch.from_numpy(WEIGHT["w"])
    assert torch.equal(Replay(path, module.input_shape)(X), wanted)
    packed = path.with_suffix(".onnx.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert torch.equal(Replay(packed, module.input_shape)(X[:1]), wanted[:1])


def test_a_file_without_one_output_of_real_numbers_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", [("ArgMax", "x", "y", {"axis": 1})], (1, 3), {}, kind=1)
    with pytest.raises(ConfigError):
        Replay(path, (3,))


def test_what_onnxruntime_cannot_run_is_our_own_error(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", [("MatMul", "x,w", "y", {})], (1, 3), WEIGHT)
    with pytest.raises(ConfigError, match=r"net\.onnx: onnxruntime cannot run it on x \(1, 4\): .*; try it in"):
        Replay(path, (4,))(torch.zeros(1, 4))
