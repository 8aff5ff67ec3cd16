"""Maps as operations of a network file: the checker computes what we compute."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor, nn

from certbench.checker.network import Network, read
from certbench.checker.reading import Unreadable, written
from certbench.export.affine import Parts, affine
from certbench.networks.image_maps import Convolution, Separable
from certbench.networks.maps import Chain, Dense, Map, Scale, Sum
from certbench.networks.probing import linear_map
from certbench.networks.structured_maps import Along, Select, Sparse, Transposed
from tests.support.linear import gauss


def checked(folder: Path, inputs: int, parts: Parts) -> Network:
    nodes = [{"op": op, "inputs": [at], "parameters": parameters} for at, (op, parameters) in enumerate(parts)]
    content = {"format": "certbench-network", "version": 1, "shape": [inputs], "nodes": nodes}
    data = json.dumps(content).encode()
    (folder / "network.json").write_bytes(data)
    return read(folder / "network.json", hashlib.sha256(data).hexdigest())


def maps() -> dict[str, Map]:
    kernel, pool = gauss(4, 2, 3, 2), torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]], dtype=torch.float64)
    padded = Select(torch.tensor([1, 0, 1, 2, 1]), 3)
    return {
        "dense": Dense(gauss(3, 5)),
        "scale": Scale(gauss(2, 3, 1)),
        "grouped": Convolution(kernel, (4, 5, 6), (4, 3, 3), (2, 2), (1, 1), (1, 2), groups=2),
        "more behind": Convolution(kernel, (2, 6, 6), (4, 3, 6), (2, 1)),
        "circular": Convolution(kernel, (2, 6, 4), (4, 3, 4), (2, 1), (2, 0), circular=True),
        "1d": Convolution(gauss(2, 3, 2), (3, 6), (2, 6), (1,), (1,), (1,)),
        "transposed": Transposed(Convolution(kernel, (2, 6, 6), (4, 3, 6), (2, 1))),
        "separable": Separable(Scale(gauss(2)), Dense(pool), Dense(pool.flip(0))),
        "chain": Chain((padded, Convolution(gauss(2, 1, 3), (1, 5), (2, 3), (1,), (0,), (1,)), Dense(gauss(2, 6)))),
        "sum": Sum((Dense(gauss(3, 4)), Dense(gauss(3, 4, seed=1)))),
        "select": Select(torch.tensor([2, -1, 0, 2]), 3),
        "nothing": Select(torch.tensor([-1, -1]), 3),
        "sparse": Sparse.of(scipy.sparse.csr_matrix(np.diag([1.0, 2.0, 0.0]))),
        "along": Along(gauss(2, 3, 2), 2, 2),
        "pooled": linear_map(nn.AvgPool2d(3, 2, 1, count_include_pad=False), (2, 5, 5), (2, 3, 3), 1),
    }


def biases(part: Map) -> list[Tensor | None]:
    constant = gauss(part.shape[0]).repeat_interleave(part.outputs // part.shape[0])
    return [None, gauss(part.outputs), constant]


@pytest.mark.parametrize("kind", maps())
def test_the_checker_computes_what_a_map_computes(tmp_path: Path, kind: str) -> None:
    part = maps()[kind]
    for bias in biases(part):
        network = checked(tmp_path, part.inputs, affine(part, bias))
        matrix, constant = np.eye(part.outputs), np.zeros(part.outputs)
        for node in reversed(network.nodes[1:]):
            matrix, constant = matrix @ node.rows(np.arange(node.size)), constant + matrix @ node.bias
        np.testing.assert_allclose(matrix, part.matrix().numpy(), rtol=1e-14, atol=1e-15)
        np.testing.assert_allclose(constant, np.zeros(part.outputs) if bias is None else bias.numpy(), rtol=1e-14)
        x = gauss(1, part.inputs, seed=5)
        ours = part.forward(x)[0] + (0 if bias is None else bias)
        np.testing.assert_allclose(network.evaluate(x[0].numpy()), ours.numpy(), rtol=1e-12, atol=1e-12)


def test_numbers_are_kept_exactly(tmp_path: Path) -> None:
    for part in maps().values():
        if isinstance(part, Select | Sparse | Along | Dense):
            (node,) = checked(tmp_path, part.inputs, affine(part, None)).nodes[1:]
            assert (node.weight == part.matrix().numpy()).all()


@pytest.mark.parametrize(
    "rows, columns, outputs, reason",
    [
        ([0, 0], [1, 1], 2, "gives an entry twice"),
        ([0, 2], [1, 1], 2, "outside of its matrix"),
        ([0, 1], [1, 3], 2, "outside of its matrix"),
        ([0, 1], [1, -1], 2, "outside of its matrix"),
        ([0, 1], [1, 0.5], 2, "outside of its matrix"),
        ([0], [1, 0], 2, "has the shape"),
        ([0, 1], [1, 0], 0, "at least 1"),
        ([0, 1], [1, 0], 2**40, "larger than this checker can follow"),
    ],
)
def test_the_checker_refuses_entries_that_make_no_matrix(
    tmp_path: Path, rows: list[float], columns: list[float], outputs: int, reason: str
) -> None:
    content = {"outputs": outputs, "rows": written(np.array(rows)), "columns": written(np.array(columns))}
    parts: Parts = [("sparse", {**content, "values": written(np.ones(2)), "bias": None})]
    with pytest.raises(Unreadable, match=reason):
        checked(tmp_path, 3, parts)
