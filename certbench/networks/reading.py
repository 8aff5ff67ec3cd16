"""The reader of networks: it makes one graph of affine maps and functions, from which all else is made."""

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from certbench.core.classifier import Classifier, Regressor
from certbench.errors import ConfigError, NumericalError, UnsupportedError
from certbench.networks.folding import layered
from certbench.networks.graph import Graph, kept, pruned
from certbench.networks.layers import Network
from certbench.networks.module import GraphModule, graph_of
from certbench.networks.operators import EXACT, UNCHANGED, evaluate, keeps_order, known, write
from certbench.networks.operators.builder import Builder, Moving, packet
from certbench.networks.recording import layers, place, record

KEPT = 4
"""Number of graphs that are remembered, by the content of the classifier."""

LARGE = 2**18
"""Number of values of a graph from which on it is compared with its module on `FEW` inputs. A judgement: seconds."""

FEW = 8
"""Number of inputs on which a large graph is compared with its module."""

_READ: dict[str, tuple[Graph, Graph]] = {}


@torch.no_grad()
def read(classifier: Classifier) -> Graph:
    """Read what a classifier computes, in float64. Equal content gives the same object, so work is shared.

    The graph is compared with the module on random inputs, one at a time and in batches.

    Raises:
        UnsupportedError: the module has an operator that is not known here; the message names the layer and the line.
        NumericalError: a parameter is NaN or infinite.
    """
    made = graph_of(classifier.module)
    if made is not None:
        return made
    double = classifier.double()
    try:
        # A regressor keeps the last function that a classifier's graph leaves out.
        key = f"{double.fingerprint()} {classifier.dtype} {classifier.device} {isinstance(classifier, Regressor)}"
    except ConfigError:  # a setting cannot be read, so nothing is shared
        return _read(classifier, double)[1]
    known_before = _READ.get(key)
    if known_before is None or not _agree(known_before[0], double):  # code outside the fingerprint may have changed
        _READ[key] = _read(classifier, double)
        while len(_READ) > KEPT:
            _READ.pop(next(iter(_READ)))
    return _READ[key][1]


def logits_of(classifier: Classifier, steps: bool = False) -> Classifier:
    """Return a classifier in float64, without the last function of its module where that is left out of the graph.

    A last softmax, or one increasing function of every logit, leaves the order of the classes alone, and radii too.

    Args:
        classifier: the classifier.
        steps: whether the module is the graph's in any case. Each value is that of a submodule then, so that the
            allowance for rounding, which looks at these, sees the large ones.

    Raises:
        UnsupportedError, NumericalError: as `read`.
    """
    graph = read(classifier)
    double = classifier.double()
    whole = graph.head is None and not graph.masked
    if whole and not steps and double.dtype == torch.float64:  # a module without parameters stays float32
        return double
    return replace(classifier, module=GraphModule(graph).to(classifier.device).eval())


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


def _read(classifier: Classifier, double: Classifier) -> tuple[Graph, Graph]:
    """Record a classifier in float64, and compare it with the module; return the graph whole, and without its head."""
    module = double.module  # a buffer may be a mask of -inf
    wild = any(not bool(weight.isfinite().all()) for weight in module.parameters())
    if wild or any(bool((buffer.isnan() | (buffer == torch.inf)).any()) for buffer in module.buffers()):
        raise NumericalError(f"{double.name} has parameters that are NaN or infinite")
    recorded = record(double, known, places=True)
    whole, graph = _written(double, recorded)
    if classifier.dtype != torch.float64:
        graph = replace(graph, computed=graph.computed or _rounds_numbers(classifier, recorded))
    if not _agree(whole, double):
        raise UnsupportedError(
            f"{double.name}, read as a graph, computes other outputs than the module does: its code may depend on the "
            "values of the input, on the other inputs of a batch, or on numbers that change"
        )
    return whole, graph


def _written(double: Classifier, recorded: fx.GraphModule) -> tuple[Graph, Graph]:
    """Write a recorded module as a graph, operator by operator; return it whole, and without its head."""
    build = Builder(double.input_shape, double.device)
    values: dict[fx.Node, Any] = {}
    own = {tensor.data_ptr() for tensor in double.tensors()}
    computed = False

    def at_hand(part: Any) -> Any:
        return values.get(part, part) if isinstance(part, fx.Node) else part

    for node in recorded.graph.nodes:
        if node.op == "placeholder":
            values[node] = build.input
        elif node.op == "get_attr":
            constant = getattr(recorded, str(node.target))
            computed |= _is_real(constant) and constant.data_ptr() not in own
            values[node] = constant.detach().to(torch.float64) if _is_real(constant) else constant
        elif node.op == "output":
            last: Any = node.args[0]
            if not isinstance(last, fx.Node) or not isinstance(values[last], Moving):
                raise UnsupportedError(f"the output of {double.name} does not depend on its input, or is no tensor")
            if values[last].masked is not None:
                raise UnsupportedError(f"{double.name} has outputs that are -inf whatever the input is; leave them out")
            computed |= build.computed
            leaving = _leaving(recorded, values)
            masked = any(isinstance(value, Moving) and value.masked is not None for value in values.values())
            whole = _graph(build, values[last].node, None, computed, leaving, masked)
            if isinstance(double, Regressor):
                return whole, whole
            last, head = _without_head(last, values)
            return whole, _graph(build, values[last].node, head, computed, leaving, masked)
        else:
            build.origin = place(node) or str(packet(node.target))
            args, options = map_aggregate((node.args, node.kwargs), at_hand)
            try:
                if _moves((args, options)):
                    values[node] = write(build, node.target, args, options, _shape(node))
                else:
                    values[node] = _constant(node, args, options)
                    computed |= _is_real(values[node]) and packet(node.target) not in EXACT
            except UnsupportedError as error:
                raise UnsupportedError(f"{double.name}: {build.origin}: {error}") from error
            except Exception as error:  # a rule may meet shapes or options that nobody thought of
                raise UnsupportedError(
                    f"{double.name}: {build.origin}: {packet(node.target)} with these options is not known here "
                    f"({type(error).__name__}: {str(error).partition(chr(10))[0]})"
                ) from error
    raise UnsupportedError(f"{double.name} has no output")


def _graph(
    build: Builder, last: int, head: str | None, computed: bool, leaving: dict[str, tuple[int, ...]], masked: bool
) -> Graph:
    """Return the graph of a value, with the places of the values that leave layers and that it needs."""
    places = kept(build.nodes, last)
    layers = {name: tuple(places[at] for at in found if at in places) for name, found in leaving.items()}
    return Graph(pruned(build.nodes, last), head, computed, layers, masked)


def _leaving(recorded: fx.GraphModule, values: dict[fx.Node, Any]) -> dict[str, tuple[int, ...]]:
    """Return the places of the values that leave each layer, by its name; none where one has entries of -inf."""
    found: dict[str, set[int]] = {}
    masked = set[str]()
    for node in recorded.graph.nodes:
        value = values.get(node)
        if isinstance(value, Moving):
            for name in layers(node):
                if any(name not in layers(user) for user in node.users):
                    found.setdefault(name, set()).add(value.node)
                    masked |= set() if value.masked is None else {name}
    return {name: tuple(sorted(places)) for name, places in found.items() if name not in masked}


def _without_head(last: fx.Node, values: dict[fx.Node, Any]) -> tuple[fx.Node, str | None]:
    """Return the node before the functions at the end that keep the order of the classes, and their names."""
    names: list[str] = []
    while last.args and isinstance(before := last.args[0], fx.Node) and keeps_order(last.target, last.args, values):
        if packet(last.target) not in UNCHANGED:
            names.insert(0, packet(last.target).__name__.strip("_"))
        last = before
    return last, " of ".join(reversed(names)) or None


def _moves(value: Any) -> bool:
    """Say whether a value, or a part of it, depends on the input."""
    if isinstance(value, dict):
        return any(_moves(part) for part in value.values())
    if isinstance(value, list | tuple):
        return any(_moves(part) for part in value)
    return isinstance(value, Moving)


def _is_real(value: Any) -> bool:
    """Say whether a value is a tensor of real numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def _constant(node: fx.Node, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Compute what does not depend on the input."""
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        raise UnsupportedError("draws random numbers; smoothing is the way to certify a randomised classifier")
    return evaluate(node.target, args, options)


def _shape(node: fx.Node) -> Any:
    """Return the shape of a node's result, or of each part of it."""
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        return [tuple(part.shape) if isinstance(part, Tensor) else None for part in value]
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _rounds_numbers(classifier: Classifier, double: fx.GraphModule) -> bool:
    """Say whether numbers in the code differ between the module and its recorded copy in float64, by rounding.

    Raises:
        UnsupportedError: they differ by more.
    """
    ours, theirs = _literals(double), _literals(record(classifier, known))
    if ours == theirs:
        return False
    close = len(ours) == len(theirs) and all(
        a == b or (isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-2))
        for a, b in zip(ours, theirs, strict=True)
    )
    if not close:
        raise UnsupportedError(
            f"{classifier.name} computes with other numbers in float64 than in {classifier.dtype}: its code asks for "
            "the dtype, or a normalisation without eps does"
        )
    return True


def _literals(recorded: fx.GraphModule) -> list[Any]:
    """Return the numbers that are written in a recorded graph."""
    found: list[Any] = []

    def note(part: Any) -> None:
        if isinstance(part, int | float):
            found.append(part)

    for node in recorded.graph.nodes:
        if node.op == "call_function":
            map_aggregate((node.args, node.kwargs), note)
    return found


def _probes(double: Classifier, seed: int) -> Float[Tensor, "64 ..."]:
    """Draw random inputs of several sizes."""
    x = torch.randn(64, *double.input_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sizes = torch.tensor([0.1, 1.0, 10.0, 100.0], dtype=torch.float64).repeat(16).view(-1, *[1] * (x.dim() - 1))
    return (x * sizes).to(double.device)


def _agree(graph: Graph, double: Classifier) -> bool:
    """Say whether both compute the same outputs, relative to these less their mean, which hides differences.

    The module runs on one, on two, on three and on all inputs. Where its outputs are not finite, ours are not either.
    """
    x = _probes(double, 1)[: FEW if sum(node.size for node in graph.nodes) > LARGE else None]
    values = graph.values(x.flatten(1))
    ours, largest = values[-1], torch.zeros(len(x), 1, dtype=torch.float64, device=x.device)
    for value in values:
        largest = torch.maximum(largest, value.abs().amax(dim=1, keepdim=True))
    parts = []
    for some in (slice(0, 1), slice(1, 3), slice(3, 6), slice(0, None)):
        outputs = double.module(x[some].clone())
        if not isinstance(outputs, Tensor) or outputs.shape != ours[some].shape:
            return False
        parts.append((outputs, ours[some], largest[some]))
    outputs, ours, largest = (torch.cat(part) for part in zip(*parts, strict=True))
    finite = outputs.isfinite().all(dim=1)
    if not bool(finite.any()) or bool(ours[~finite].isfinite().all(dim=1).any()):
        return False
    outputs, ours, largest = outputs[finite], ours[finite], largest[finite]
    apart = outputs - outputs.mean(dim=1, keepdim=True) if outputs.shape[1] > 1 else outputs
    allowed = 1e-9 * apart.abs().amax(dim=1, keepdim=True) + 1e-13 * largest
    return bool(((ours - outputs).abs() <= allowed + 1e-300).all())
