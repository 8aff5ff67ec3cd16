"""Networks as certificates store them: nodes in order, each affine, a ReLU or a sum, all matrices written out."""

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from certbench.checker.reading import Refused, Unreadable, array, fields, items, parse, text, whole
from certbench.checker.rounding import TINY, gamma, product_up, up

ENTRIES = 2**27
"""Maximum number of entries of all matrices that are written out: 1 GiB."""

PARAMETERS = {  # the names of each operation's parameters
    "dense": ("weight", "bias"),
    "conv2d": ("shape", "kernel", "bias", "stride", "padding"),
    "sparse": ("outputs", "rows", "columns", "values", "bias"),
    "scale": ("weight", "bias"),
    "normalise": ("mean", "deviation"),
    "relu": (),
    "add": (),
}


class EnclosedLayer(NamedTuple):
    """An affine map between ReLUs, with a bound of each entry's error."""

    weight: np.ndarray
    weight_error: np.ndarray
    bias: np.ndarray
    bias_error: np.ndarray


@dataclass(frozen=True, eq=False)
class Node:
    """One value of the network, a flat vector.

    Attributes:
        op: "input", "affine", "relu" or "add".
        inputs: the nodes that it reads, all before it.
        size: its length.
        weight: an affine node's matrix, or its diagonal as a vector.
        bias: an affine node's bias.
        roundings: number of roundings in the entries of `weight` and `bias`; 0 if they are exact.
    """

    op: str
    inputs: tuple[int, ...]
    size: int
    weight: np.ndarray = field(default_factory=lambda: np.zeros(0))
    bias: np.ndarray = field(default_factory=lambda: np.zeros(0))
    roundings: int = 0

    def times(self, h: np.ndarray) -> np.ndarray:
        """Compute W h."""
        moved: np.ndarray = self.weight @ h if self.weight.ndim == 2 else self.weight * h
        return moved

    def pull(self, c: np.ndarray) -> np.ndarray:
        """Compute the rows c W."""
        pulled: np.ndarray = c @ self.weight if self.weight.ndim == 2 else c * self.weight
        return pulled

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Return some rows of W."""
        matrix = self.weight if self.weight.ndim == 2 else np.diag(self.weight)
        return np.take(matrix, index, axis=0)

    def largest(self, size: np.ndarray) -> np.ndarray:
        """Compute an upper bound of |W| |h| + |b| for every |h| <= size."""
        moduli = np.abs(self.weight)
        moved = product_up(moduli, size) if moduli.ndim == 2 else moduli * size
        return up(moved + np.abs(self.bias), 4 + self.roundings)


@dataclass(frozen=True, eq=False)
class Network:
    """Nodes in order: the first is the input, the last gives the outputs."""

    nodes: tuple[Node, ...]
    shape: tuple[int, ...]

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.nodes[-1].size

    @cached_property
    def relus(self) -> list[int]:
        """Indices of the nodes that are ReLUs."""
        return [i for i, node in enumerate(self.nodes) if node.op == "relu"]

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        """Compute the outputs at a flat input, in float64."""
        values = [x]
        for node in self.nodes[1:]:
            h = values[node.inputs[0]]
            if node.op == "affine":
                values.append(node.times(h) + node.bias)
            else:
                values.append(np.maximum(h, 0.0) if node.op == "relu" else h + values[node.inputs[1]])
        return values[-1]

    def layers(self) -> list[EnclosedLayer]:
        """Multiply out the affine maps between the ReLUs of a chain, with their rounding errors enclosed."""
        found: list[EnclosedLayer | None] = [None]
        for i, node in enumerate(self.nodes[1:], 1):
            if node.inputs != (i - 1,):
                raise Refused(f"node {i} does not read the one before it alone: a skip connection")
            if node.op == "relu":
                found.append(None)
            else:
                found[-1] = _then(found[-1], node)
        layers = [layer for layer in found if layer is not None]
        if len(layers) < len(found):
            raise Refused("there is no affine map before, between or after the ReLUs")
        return layers


def _then(first: EnclosedLayer | None, node: Node) -> EnclosedLayer:
    """Compose an affine node with the affine map before it."""
    weight, bias = node.rows(np.arange(node.size)), node.bias
    off = 2 * gamma(node.roundings)
    error, bias_error = off * np.abs(weight), off * np.abs(bias) + (TINY if node.roundings else 0.0)
    if first is None:
        return EnclosedLayer(weight, error, bias, bias_error)
    far, sums = np.abs(weight), gamma(weight.shape[1] + 2)
    near, near_bias = up(np.abs(first.weight) + first.weight_error), up(np.abs(first.bias) + first.bias_error)
    spread = product_up(far, first.weight_error) + product_up(error, near) + sums * product_up(far, near)
    moved = product_up(far, first.bias_error) + product_up(error, near_bias) + sums * product_up(far, near_bias)
    rounded = up(moved + sums * np.abs(bias) + bias_error, 8)
    return EnclosedLayer(weight @ first.weight, up(spread, 8), weight @ first.bias + bias, rounded)


def read(path: Path, digest: str) -> Network:
    """Read a network file, which must have this sha256."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Unreadable(f"cannot read the network file: {error}") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise Unreadable(f"{path.name} is not the network that the claim is about")
    kind, version, shape, nodes = fields(parse(data), ("format", "version", "shape", "nodes"), "network")
    if (kind, repr(version)) != ("certbench-network", "1"):
        raise Unreadable(f"{path.name} is no network file of version 1")
    sizes = tuple(whole(n, "network.shape", 1) for n in items(shape, "network.shape"))
    found = [Node("input", (), math.prod(sizes))]
    for i, node in enumerate(items(nodes, "network.nodes"), 1):
        found.append(_node(node, f"node {i}", found))
        if sum(part.weight.size for part in found) > ENTRIES:
            raise Unreadable("the network is larger than this checker can follow")
    return Network(tuple(found), sizes)


def _node(value: Any, where: str, before: list[Node]) -> Node:
    op, inputs, parameters = fields(value, ("op", "inputs", "parameters"), where)
    given = fields(parameters, PARAMETERS[text(op, f"{where}.op", PARAMETERS)], f"{where}.parameters")
    sources = tuple(whole(i, f"{where}.inputs") for i in items(inputs, f"{where}.inputs"))
    if len(sources) != (2 if op == "add" else 1) or not all(i < len(before) for i in sources):
        raise Unreadable(f"{where}.inputs must be {'two nodes' if op == 'add' else 'one node'} before it")
    n = before[sources[0]].size
    if op in ("relu", "add"):
        if before[sources[-1]].size != n:
            raise Unreadable(f"{where} adds vectors of different lengths")
        return Node(op, sources, n)
    if op == "normalise":
        mean, deviation = (array(part, where, (n,)) for part in given)
        if not ((np.abs(deviation) > 1e-75) & (np.abs(deviation) < 1e75)).all():
            raise Unreadable(f"{where}.deviation is too small or too large to divide by")
        return Node("affine", sources, n, 1 / deviation, -mean / deviation, 2)
    if op == "conv2d":
        weight, bias = _convolution(given, n, where)
    elif op == "sparse":
        weight, bias = _sparse(given, n, where)
    else:
        weight = array(given[0], f"{where}.weight", (None, n) if op == "dense" else (n,))
        bias = _bias(given[1], len(weight), where)
    if len(bias) == 0:
        raise Unreadable(f"{where} has no outputs")
    return Node("affine", sources, len(bias), weight, bias)


def _convolution(given: list[Any], n: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Write out the matrix of a convolution with zero padding, and its bias."""
    shape, stride, padding = (_whole(given[i], k, where, least) for i, k, least in ((0, 3, 1), (3, 2, 1), (4, 2, 0)))
    kernel = array(given[1], f"{where}.kernel", (None, shape[0], None, None))
    outputs, channels, *window = kernel.shape
    _, height, width = shape
    rows, columns = ((shape[1 + i] + 2 * padding[i] - window[i]) // stride[i] + 1 for i in range(2))
    if math.prod(shape) != n or kernel.size == 0 or min(rows, columns) < 1:
        raise Unreadable(f"{where} does not fit its input")
    if rows * columns * outputs * n > ENTRIES:
        raise Unreadable(f"{where} is larger than this checker can follow")
    matrix = np.zeros((rows, columns, height, width, outputs, channels))
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    for i in range(window[0]):
        for j in range(window[1]):
            row, column = y * stride[0] - padding[0] + i, x * stride[1] - padding[1] + j
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            matrix[y[inside], x[inside], row[inside], column[inside]] = kernel[:, :, i, j]
    weight = matrix.transpose(4, 0, 1, 5, 2, 3).reshape(outputs * rows * columns, n)
    return np.ascontiguousarray(weight), _bias(given[2], outputs, where).repeat(rows * columns)


def _sparse(given: list[Any], n: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Write out a matrix that is given by its entries, each at a place of its own, and its bias."""
    outputs, values = whole(given[0], f"{where}.outputs", 1), array(given[3], f"{where}.values", (None,))
    if outputs * n > ENTRIES:
        raise Unreadable(f"{where} is larger than this checker can follow")
    rows, columns = (array(given[i], where, values.shape) for i in (1, 2))
    for at, size in ((rows, outputs), (columns, n)):
        if not ((at >= 0) & (at < size) & (at == np.floor(at))).all():
            raise Unreadable(f"{where} has an entry outside of its matrix")
    places = (rows * n + columns).astype(np.int64)
    if len(np.unique(places)) < len(places):
        raise Unreadable(f"{where} gives an entry twice")
    weight = np.zeros(outputs * n)
    weight[places] = values
    return weight.reshape(outputs, n), _bias(given[4], outputs, where)


def _bias(value: Any, size: int, where: str) -> np.ndarray:
    return np.zeros(size) if value is None else array(value, f"{where}.bias", (size,))


def _whole(value: Any, count: int, where: str, least: int) -> tuple[int, ...]:
    found = tuple(whole(part, where, least) for part in items(value, where))
    if len(found) != count:
        raise Unreadable(f"{where} must have {count} whole numbers")
    return found
