"""ReLU networks written as `certbench.checker` reads them: one node per layer, parameters exact."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from certbench.checker.reading import written
from certbench.core.classifier import Classifier
from certbench.errors import UnsupportedError
from certbench.export.affine import Parts, affine
from certbench.networks.reading import RULES, relu_network
from certbench.networks.tracing import asks_shape, trace


@torch.no_grad()
def write(classifier: Classifier) -> bytes:
    """Return the network file of a classifier.

    Average pooling becomes a convolution, and batch normalisation a division by the square root of its variance. Both
    have new numbers, rounded to float64; everything else keeps its numbers.

    Raises:
        UnsupportedError: the classifier is no ReLU network; the message names the layer.
    """
    relu_network(classifier)  # this refuses modules with effects that a trace does not show
    double = classifier.double()
    graph = trace(Classifier(nn.Sequential(double.module).eval(), double.input_shape, double.num_classes, double.name))
    writer = _Writer(graph)
    writer.run(torch.zeros(2, *double.input_shape, dtype=torch.float64, device=double.device))
    content = {
        "format": "certbench-network",
        "version": 1,
        "shape": list(double.input_shape),
        "nodes": writer.nodes,
    }
    return json.dumps(content, separators=(",", ":")).encode()


class _Writer(fx.Interpreter):
    """An interpreter that runs the graph for its shapes and writes a node for every layer."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.nodes: list[dict[str, Any]] = []
        self.places: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        moving = [source for source in n.all_input_nodes if source in self.places]
        if n.op == "placeholder":
            self.places[n] = 0
        elif moving and n.op != "output" and not asks_shape(n):
            self.places[n] = self.follow(n, moving, result)
        elif n.op == "output" and self.places[moving[0]] != len(self.nodes):
            self.add("scale", [self.places[moving[0]]], _diagonal(np.ones(result[0].numel())))  # the last is the output
        return result

    def add(self, op: str, inputs: list[int], parameters: Mapping[str, Any]) -> int:
        """Add a node, and return its number."""
        self.nodes.append({"op": op, "inputs": inputs, "parameters": dict(parameters)})
        return len(self.nodes)

    def add_all(self, at: int, parts: Parts) -> int:
        """Add nodes one after the other behind a node, and return the last one's number."""
        for op, parameters in parts:
            at = self.add(op, [at], parameters)
        return at

    def follow(self, n: fx.Node, moving: list[fx.Node], result: Tensor) -> int:
        """Apply the rule of one node of the graph."""
        layer = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        first = self.places[moving[0]]
        before = tuple(self.env[moving[0]].shape[1:])
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.AvgPool2d):
            part, bias, _ = RULES[type(layer)](layer, before, tuple(result.shape[1:]))
            return self.add_all(first, affine(part, bias))
        rule = _RULES.get(type(layer))
        if rule is not None:
            return self.add_all(first, rule(layer, before))
        name = str(getattr(n.target, "__name__", n.target)).strip("_") if layer is None else ""
        if name == "relu":
            return self.add("relu", [first], {})
        if isinstance(layer, nn.Flatten | nn.Identity | nn.Dropout | nn.Dropout2d | nn.Unflatten) or name in _VIEWS:
            return first
        sign = _ARITHMETIC.get(name)
        if sign is None:
            raise UnsupportedError(f"{n.target} has no place in a network file")
        terms = [self.places.get(arg) if isinstance(arg, fx.Node) else None for arg in n.args]
        size = result[0].numel()
        if terms[0] is not None and terms[1] is not None:
            if sign == "-":
                terms[1] = self.add("scale", [terms[1]], _diagonal(-np.ones(size)))
            return self.add("add", [terms[0], terms[1]], {})
        constant = n.args[1 if terms[0] is not None else 0]
        value = self.env[constant] if isinstance(constant, fx.Node) else constant
        flat = torch.as_tensor(value, dtype=torch.float64).expand(result.shape)[0].flatten().cpu().numpy()
        if sign == "/":
            return self.add("normalise", [first], {"mean": written(np.zeros(size)), "deviation": written(flat)})
        if sign == "*":
            return self.add("scale", [first], _diagonal(flat))
        ones = -np.ones(size) if sign == "-" and terms[0] is None else np.ones(size)
        return self.add("scale", [first], _diagonal(ones, -flat if sign == "-" and terms[0] is not None else flat))


def _diagonal(weight: np.ndarray, bias: np.ndarray | None = None) -> dict[str, Any]:
    return {"weight": written(weight), "bias": None if bias is None else written(bias)}


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, before: tuple[int, ...]) -> Parts:
    assert layer.running_mean is not None and layer.running_var is not None

    def flat(tensor: Tensor) -> dict[str, Any]:
        shape = (-1, *[1] * (len(before) - 1))
        return written(tensor.detach().double().reshape(shape).expand(before).flatten().cpu().numpy())

    deviation = (layer.running_var.double() + layer.eps).sqrt()
    parts: Parts = [("normalise", {"mean": flat(layer.running_mean), "deviation": flat(deviation)})]
    if layer.weight is not None:
        parts.append(("scale", {"weight": flat(layer.weight), "bias": flat(layer.bias)}))
    return parts


_RULES: Mapping[type[Any], Callable[[Any, tuple[int, ...]], Parts]] = {
    nn.ReLU: lambda layer, before: [("relu", {})],
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
}
_VIEWS = ("flatten", "view", "reshape", "contiguous", "unsqueeze", "squeeze")
_ARITHMETIC = {"add": "+", "iadd": "+", "sub": "-", "isub": "-", "mul": "*", "truediv": "/", "div": "/"}
