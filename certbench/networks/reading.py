"""The reader of networks: one graph of affine maps and functions for every classifier, which all others are made from."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from certbench.core.classifier import Classifier
from certbench.errors import ConfigError, NumericalError, UnsupportedError
from certbench.networks.graph import Graph, pruned
from certbench.networks.layers import Network, layered
from certbench.networks.operators import Builder, Moving, known, packet, REARRANGING, RULES, write
from certbench.networks.recording import place, record

KEPT = 4
"""Number of graphs that are remembered, by the content of the classifier."""

_READ: dict[str, Graph] = {}


@torch.no_grad()
def read(classifier: Classifier) -> Graph:
    """Read what a classifier computes, in float64. Equal content gives the same object, so work is shared.

    The graph is compared with the module on random inputs, one at a time and in batches.

    Raises:
        UnsupportedError: the module has an operator that is not known here; the message names the layer and the line.
        NumericalError: a parameter is NaN or infinite.
    """
    double = classifier.double()
    try:
        key = f"{double.fingerprint()} {classifier.dtype}"
    except ConfigError:  # a setting cannot be read, so nothing is shared
        return _read(classifier, double)
    if key not in _READ or not _agree(_READ[key], double):  # code that the fingerprint does not cover may have changed
        _READ[key] = _read(classifier, double)
        while len(_READ) > KEPT:
            _READ.pop(next(iter(_READ)))
    return _READ[key]


def network(classifier: Classifier) -> Network:
    """Read a classifier as affine layers with an activation after each but the last.

    Raises:
        UnsupportedError, NumericalError: as `read`.
    """
    return layered(read(classifier))


def relu_network(classifier: Classifier) -> Network:
    """Read a classifier as a ReLU network. Continuous piecewise linear functions are written as sums of ReLUs.

    Raises:
        UnsupportedError: the module is no ReLU network; the message names the layer.
        NumericalError: a parameter is NaN or infinite.
    """
    return layered(read(classifier), relus=True)


def _read(classifier: Classifier, double: Classifier) -> Graph:
    """Record a classifier and its copy in float64."""
    if not all(bool(tensor.isfinite().all()) for tensor in double.tensors()):
        raise NumericalError(f"{double.name} has parameters that are NaN or infinite")
    recorded = record(double, known)
    try:
        graph = _written(double, recorded)
    except UnsupportedError:
        graph = _written(double, record(double, known, places=True))  # anew, so that the message says where
    program = record(classifier, known) if classifier.dtype != torch.float64 else recorded
    if graph.computed or _literals(recorded) != _literals(program):  # some were computed from buffers on the way
        graph = Graph(graph.nodes, graph.head, True)
    if not _agree(graph, double):
        raise UnsupportedError(
            f"{double.name}, read as a graph, computes other outputs than the module does: its code may depend on the "
            "values of the input, on the other inputs of a batch, or on numbers that change"
        )
    return graph


def _written(double: Classifier, recorded: fx.GraphModule) -> Graph:
    """Write a recorded module as a graph, operator by operator."""
    build = Builder(double.input_shape, double.device)
    values: dict[fx.Node, Any] = {}
    own = {tensor.data_ptr() for tensor in double.tensors()}
    computed = False
    for node in recorded.graph.nodes:
        if node.op == "placeholder":
            values[node] = build.input
            continue
        if node.op == "get_attr":
            constant = getattr(recorded, str(node.target))
            computed |= isinstance(constant, Tensor) and constant.data_ptr() not in own
            values[node] = constant.detach().to(torch.float64) if _is_real(constant) else constant
            continue
        args, options = map_aggregate((node.args, node.kwargs), lambda part: values.get(part, part))
        if node.op == "output":
            found = args[0]
            if not isinstance(found, Moving):
                raise UnsupportedError("the module's output does not depend on its input, or is no tensor")
            return Graph(pruned(build.nodes, found.node), None, computed)
        build.origin = place(node) or f"{packet(node.target)}"
        shape = _shape(node)
        try:
            if any(isinstance(values.get(source), Moving) for source in node.all_input_nodes) or _moves(args):
                values[node] = write(build, node.target, args, options, shape)
            else:
                values[node] = _constant(node, args, options)
                computed |= packet(node.target) not in REARRANGING and not _keeps(node)
        except UnsupportedError as error:
            raise UnsupportedError(f"{double.name}: {place(node) or packet(node.target)}: {error}") from error
        except Exception as error:  # a rule may meet shapes or options that nobody thought of
            raise UnsupportedError(
                f"{double.name}: {place(node) or packet(node.target)}: {packet(node.target)} with these options is not "
                f"known here ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
            ) from error
    raise UnsupportedError(f"{double.name} has no output")


def _moves(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_moves(part) for part in value)
    if isinstance(value, dict):
        return any(_moves(part) for part in value.values())
    return isinstance(value, Moving)


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _keeps(node: fx.Node) -> bool:
    """Say whether an operator on constants keeps their numbers."""
    rule = RULES.get(packet(node.target))
    return rule is not None and rule.__name__ in ("_same", "_item")


def _constant(node: fx.Node, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Compute what does not depend on the input."""
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        raise UnsupportedError("draws random numbers; smoothing is the way to certify a randomised classifier")
    return node.target(*args, **options)


def _shape(node: fx.Node) -> Any:
    """Return the shape of a node's result, or of each part of it."""
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        return [tuple(part.shape) if isinstance(part, Tensor) else None for part in value]
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _literals(recorded: fx.GraphModule) -> list[str]:
    """Return the numbers that are written in a recorded graph."""
    found: list[str] = []
    for node in recorded.graph.nodes:
        if node.op == "call_function":
            map_aggregate(
                (node.args, node.kwargs),
                lambda part: found.append(repr(part)) if isinstance(part, int | float | bool) else None,
            )
    return found


def _probes(double: Classifier, seed: int) -> Float[Tensor, "64 ..."]:
    """Draw random inputs of several sizes."""
    x = torch.randn(64, *double.input_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sizes = torch.tensor([0.1, 1.0, 10.0, 100.0], dtype=torch.float64).repeat(16).view(-1, *[1] * (x.dim() - 1))
    return (x * sizes).to(double.device)


def _agree(graph: Graph, double: Classifier) -> bool:
    """Say whether both compute the same outputs, relative to these less their mean, which hides differences.

    The module runs on one, on two, on three and on all inputs.
    """
    x = _probes(double, 1)
    largest = torch.zeros(len(x), 1, dtype=torch.float64, device=x.device)
    values = graph.values(x.flatten(1))
    ours = values[-1]
    for value in values[1:]:
        largest = torch.maximum(largest, value.abs().amax(dim=1, keepdim=True))
    for part in (slice(None), slice(0, 1), slice(1, 3), slice(3, 6)):
        outputs = double.module(x[part].clone())
        if not isinstance(outputs, Tensor) or outputs.shape != ours[part].shape or not bool(outputs.isfinite().all()):
            return False
        apart = outputs - outputs.mean(dim=1, keepdim=True) if outputs.shape[1] > 1 else outputs
        allowed = 1e-9 * apart.abs().amax(dim=1, keepdim=True) + 1e-13 * largest[part]
        if not bool(((ours[part] - outputs).abs() <= allowed + 1e-300).all()):
            return False
    return True
