"""ONNX files that are made by hand, and loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from certbench.core.classifier import Regressor
from certbench.formats.onnx.module import OnnxModule
from certbench.networks.operators import known
from certbench.networks.recording import record

Node = tuple[Any, ...]


def write(
    path: Path,
    nodes: Sequence[Node],
    shape: Sequence[int | str],
    constants: dict[str, NDArray[Any]] | None = None,
    *,
    opset: int = 17,
    output: str = "y",
    kind: int = 1,
    domains: Sequence[str] = (),
    outputs: Sequence[Any] = (),
    functions: Sequence[Any] = (),
) -> Path:
    """Write a file whose input is `x`. A node is (operator, inputs, outputs, attributes), or (.., domain)."""
    onnx = pytest.importorskip("onnx")
    made = []
    for operator, inputs, results, attributes, *domain in nodes:
        made.append(
            onnx.helper.make_node(operator, inputs.split(","), results.split(","), domain="".join(domain), **attributes)
        )
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    entry = onnx.helper.make_tensor_value_info("x", kind, shape)
    end = [*outputs] or [onnx.helper.make_tensor_value_info(output, kind, None)]
    graph = onnx.helper.make_graph(made, "graph", [entry], end, stored)
    opsets = [onnx.helper.make_opsetid(name, 1 if name else opset) for name in ("", *domains)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=functions)
    model.ir_version = 8 if opset < 21 else 10
    path.write_bytes(model.SerializeToString())
    return path


def single(
    folder: Path,
    operator: str,
    shape: Sequence[int],
    *constants: Any,
    opset: int = 17,
    batch: int | str = "n",
    domain: str = "",
    outputs: str = "y",
    **attributes: Any,
) -> OnnxModule:
    """Load a file of one operator, applied to the input and constants, and check that the reader records it.

    The loading itself compares it with onnxruntime, and batches with single inputs.
    """
    from certbench.formats.onnx.loading import load

    pytest.importorskip("onnxruntime")
    arrays = {f"c{i}": as_array(value) for i, value in enumerate(constants) if value is not None}
    names = ["x", *("" if value is None else f"c{i}" for i, value in enumerate(constants))]
    node = (operator, ",".join(names), outputs, attributes, domain)
    path = write(
        folder / f"{operator}.onnx", [node], (batch, *shape), arrays, opset=opset, domains=[domain] if domain else []
    )
    module = load(path)
    n = module(torch.zeros(1, *shape)).shape[1]
    record(Regressor(module, (*shape,), n), known)
    return module


def as_array(value: Any) -> NDArray[Any]:
    """Numbers as ONNX keeps them: whole numbers in 64 bits, others in 32."""
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def numbers(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Random numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
