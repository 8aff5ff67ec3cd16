"""A little benchmark of the competition: networks, properties, and answers of tools."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.support.onnx_files import write

INSTANCES = {"safe": ("net", "(>= Y_0 1.1)"), "near": ("net", "(>= Y_0 0.9)"), "lossy": ("lossy", "(<= Y_0 0)")}
"""Network and unsafe outputs by the name of the property; inputs lie in [0.25, 0.75], `net` gives 0.5 + |x - 0.25|."""


def benchmark(root: Path) -> Path:
    """Write the benchmark.

    `safe` is unsat and `near` is sat, from x = 0.65 on. `lossy` gives x, but in float32, by way of numbers where only
    even ones are known, 0: so its outputs are unsafe in float32 alone.
    """
    root.mkdir(parents=True, exist_ok=True)
    one = {"w": np.float32([[1.0, -1.0]]), "b": np.float32([-0.25, 0.25]), "v": np.float32([[1.0], [1.0]])}
    constants = one | {"c": np.float32([0.5])}
    nodes = [("MatMul", "x,w", "a", {}), ("Add", "a,b", "d", {}), ("Relu", "d", "e", {}), ("MatMul", "e,v", "f", {}),
             ("Add", "f,c", "y", {})]  # fmt: skip
    write(root / "net.onnx", nodes, (1, 1), constants)
    large = {"large": np.float32([3e7])}
    write(root / "lossy.onnx", [("Add", "x,large", "a", {}), ("Sub", "a,large", "y", {})], (1, 1), large)
    lines = []
    for name, (network, unsafe) in INSTANCES.items():
        text = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (and (>= X_0 0.25) (<= X_0 0.75)))"
        (root / f"{name}.vnnlib").write_text(f"{text}\n(assert {unsafe})\n")
        lines.append(f"{network}.onnx,{name}.vnnlib,20\n")
    (root / "instances.csv").write_text("".join(lines))
    return root


def tool(folder: Path, answers: Mapping[str, str], witnesses: Mapping[str, str] | None = None) -> Path:
    """Write a tool's answers by property, and its counterexamples; return the file of results."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"mnist,{INSTANCES[name][0]}.onnx,{name}.vnnlib,1,{word},2\n" for name, word in answers.items()]
    (folder / "results.csv").write_text("".join(rows))
    for name, text in (witnesses or {}).items():
        (folder / f"{INSTANCES[name][0]}_{name}.counterexample").write_text(text)
    return folder / "results.csv"
