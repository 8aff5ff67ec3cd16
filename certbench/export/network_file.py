"""ReLU networks written as `certbench.checker` reads them: one node per layer, parameters exact."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certbench.checker.reading import written
from certbench.core.classifier import Classifier
from certbench.errors import UnsupportedError
from certbench.export.affine import Parts, affine
from certbench.networks.graph import Affine, Elementwise, Graph, Node, Sum
from certbench.networks.piecewise_linear import RELU, PiecewiseLinear
from certbench.networks.reading import read, relu_network


@torch.no_grad()
def write(classifier: Classifier) -> bytes:
    """Return the network file of a classifier.

    Layers have the numbers of the classifier's graph: parameters as they are, and those of average pooling and batch
    normalisation rounded to float64. A last function that keeps the order of the classes is left out. Piecewise linear
    functions and maxima are sums of ReLUs.

    Raises:
        UnsupportedError: the classifier is no ReLU network; the message names the layer.
    """
    relu_network(classifier)  # this names what is no ReLU network
    content = {
        "format": "certbench-network",
        "version": 1,
        "shape": list(classifier.input_shape),
        "nodes": _Writer(read(classifier)).nodes,
    }
    return json.dumps(content, separators=(",", ":")).encode()


class _Writer:
    """The nodes of the file so far; node 0 is the input."""

    def __init__(self, graph: Graph) -> None:
        self.nodes: list[dict[str, Any]] = []
        places = [0]
        for node in graph.nodes[1:]:
            places.append(self.follow(node, [places[source] for source in node.sources]))
        if places[-1] != len(self.nodes) or not self.nodes:  # the last is the output
            self.scale(places[-1], np.ones(graph.nodes[-1].size))

    def follow(self, node: Node, sources: Sequence[int]) -> int:
        """Write one node of the graph, and return its number in the file."""
        match node:
            case Affine() if node.map is not None:
                return self.add_all(sources[0], affine(node.map, node.bias))
            case Affine():
                return sources[0] if node.bias is None else self.scale(sources[0], np.ones(node.size), node.bias)
            case Sum():
                at = sources[0]
                for source in sources[1:]:
                    at = self.add("add", [at, source], {})
                return at
            case Elementwise() if node.function == RELU:
                return self.add("relu", [sources[0]], {})
            case Elementwise() if isinstance(node.function, PiecewiseLinear):
                return self.relus(node.function, node.size, sources[0])
        raise UnsupportedError(f"{node.origin}: a {node.describe()} has no place in a network file")

    def relus(self, function: PiecewiseLinear, size: int, at: int) -> int:
        """Write a piecewise linear function as ReLUs: one at each knot, times the change of the slope."""
        knots, slopes = (
            part.view(len(part), -1).expand(-1, size).to(torch.float64) for part in (function.knots, function.slopes)
        )
        found = self.scale(at, slopes[0], function.start - (slopes[0] * knots[0] if len(knots) else 0.0))
        for knot, step in zip(knots, slopes.diff(dim=0), strict=True):
            relu = self.add("relu", [self.scale(at, np.ones(size), -knot)], {})
            found = self.add("add", [found, self.scale(relu, step)], {})
        return found

    def add(self, op: str, inputs: list[int], parameters: Mapping[str, Any]) -> int:
        """Add a node, and return its number."""
        self.nodes.append({"op": op, "inputs": inputs, "parameters": dict(parameters)})
        return len(self.nodes)

    def add_all(self, at: int, parts: Parts) -> int:
        """Add nodes one after the other behind a node, and return the last one's number."""
        for op, parameters in parts:
            at = self.add(op, [at], parameters)
        return at

    def scale(self, at: int, weight: Tensor | np.ndarray, bias: Tensor | None = None) -> int:
        """Add a product with a number for each entry, and a bias."""
        size = len(weight)
        shift = None if bias is None else written(np.array(bias.expand(size).cpu().numpy()))
        factor = weight.cpu().numpy() if isinstance(weight, Tensor) else weight
        return self.add("scale", [at], {"weight": written(factor), "bias": shift})
