"""Reader of ReLU networks: a module is traced, and its graph is read node by node as affine maps between ReLUs."""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn import functional

from certbench.core.classifier import Classifier
from certbench.errors import ConfigError, NumericalError, UnsupportedError
from certbench.networks.image_maps import Convolution
from certbench.networks.maps import DENSE_LIMIT, Chain, Dense, Map, Scale, Sum
from certbench.networks.relu import Layer, ReluNetwork
from certbench.networks.tracing import asks_shape, overwrites, refuse_hidden_writes, trace
from certbench.numerics.rounding import LARGEST, TOO_LARGE

UNDERFLOW = 2.0**-125
"""Allowance for underflow in the height of every layer: times one rounding of float32 it is the smallest float32."""


_READ: dict[str, ReluNetwork] = {}


@torch.no_grad()
def relu_network(classifier: Classifier) -> ReluNetwork:
    """Trace a classifier's module and read it in float64. Equal content gives the same object, so work is shared.

    Raises:
        UnsupportedError: the module is no ReLU network; the message names the layer.
        NumericalError: a parameter is NaN or infinite.
    """
    double = classifier.double()
    try:
        key = f"{double.fingerprint()} {classifier.dtype}"
    except ConfigError:  # a setting cannot be read, so nothing is shared
        return _read(classifier, double)
    if key not in _READ or not _agree(_READ[key], double):  # code that the fingerprint does not cover may have changed
        _READ[key] = _read(classifier, double)
        while len(_READ) > 4:
            _READ.pop(next(iter(_READ)))
    return _READ[key]


def _read(classifier: Classifier, double: Classifier) -> ReluNetwork:
    """Trace a classifier and its copy in float64."""
    if not all(bool(tensor.isfinite().all()) for tensor in (*double.module.parameters(), *double.module.buffers())):
        raise NumericalError(f"{double.name} has parameters that are NaN or infinite")
    # A single layer stays a layer of the graph if it is in a sequence.
    graph, program = (trace(replace(net, module=nn.Sequential(net.module).eval())) for net in (double, classifier))
    x = _probes(double, 0)[:4]
    reader = _GraphReader(graph)
    reader.computed = _literals(graph) != _literals(program)  # some were computed from buffers during the trace
    try:
        reader.run(x.clone())
        network = reader.network(math.prod(double.input_shape))
        agreed = _agree(network, double)
    except UnsupportedError as error:
        raise UnsupportedError(str(error).partition(chr(10))[0]) from error
    except Exception as error:  # a layer may raise anything on features of an unexpected shape
        raise UnsupportedError(f"{double.name}: {str(error).partition(chr(10))[0]}") from error
    if not math.prod(max(1.0, _gain(part)) for layer in network.layers for part in layer.paths.values()) < LARGEST:
        raise UnsupportedError(TOO_LARGE)
    if not agreed:
        raise UnsupportedError(f"{double.name}, read as a ReLU network, would compute other logits")
    refuse_hidden_writes(double, graph, x)
    return network


def _gain(path: Map) -> float:
    """Return the largest sum of a row of moduli; for a chain the product of those of its maps, each at least 1."""
    if isinstance(path, Chain):
        return math.prod(max(1.0, _gain(part)) for part in path.maps)
    if isinstance(path, Sum):
        return sum(_gain(part) for part in path.maps)
    ones = torch.ones(1, path.inputs, dtype=torch.float64, device=path.device)
    return float(path.forward(ones).max())


def _literals(graph: fx.GraphModule) -> list[str]:
    """Return the numbers that are written in a graph."""
    found: list[str] = []

    def note(value: Any) -> Any:
        found.append(repr(value))
        return value

    for n in graph.graph.nodes:
        map_aggregate((n.args, n.kwargs), lambda value: value if isinstance(value, fx.Node) else note(value))
    return found


def _probes(double: Classifier, seed: int) -> Float[Tensor, "64 ..."]:
    """Draw random inputs of several sizes."""
    x = torch.randn(64, *double.input_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sizes = torch.tensor([0.1, 1.0, 10.0, 100.0], dtype=torch.float64).repeat(16).view(-1, *[1] * (x.dim() - 1))
    return (x * sizes).to(double.device)


def _agree(network: ReluNetwork, double: Classifier) -> bool:
    """Say whether both compute the same logits, relative to the logits less their mean, which hides differences."""
    x = _probes(double, 1)
    layers = network.preactivations(x.flatten(1))
    logits, ours = double.module(x.clone()), layers[-1]  # a module without parameters would round x to float32
    if ours.shape != logits.shape or not bool(logits.isfinite().all()):
        return False
    apart = logits - logits.mean(dim=1, keepdim=True) if logits.shape[1] > 1 else logits
    largest = torch.cat([*layers, logits], dim=1).abs().amax(dim=1, keepdim=True)
    allowed = 1e-9 * apart.abs().amax(dim=1, keepdim=True) + 1e-13 * largest
    return bool(((ours - logits).abs() <= allowed + 1e-300).all())


@dataclass(frozen=True, eq=False)
class _Affine:
    """A value of the graph: `bias` plus, for each source, a sum of chains of maps. An empty chain is the identity.

    `height` sums the moduli of all constants that went into the bias.
    """

    terms: Mapping[int, tuple[tuple[Map, ...], ...]]
    bias: Float[Tensor, " size"]
    height: Float[Tensor, " size"]

    def then(self, part: Map, bias: Tensor | None = None, height: Tensor | None = None) -> "_Affine":
        terms = {source: tuple((*chain, part) for chain in chains) for source, chains in self.terms.items()}
        moved = part.absolute().forward(self.height[None])[0] + UNDERFLOW
        return _Affine(terms, part.forward(self.bias[None])[0], moved).plus(bias, height)

    def plus(self, bias: Tensor | None, height: Tensor | None = None) -> "_Affine":
        if bias is None:
            return self
        return replace(self, bias=self.bias + bias, height=self.height + (bias.abs() if height is None else height))


class _GraphReader(fx.Interpreter):
    """Runs the graph for its shapes, and writes every value as an affine function of the ReLUs before it."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.values: dict[fx.Node, _Affine] = {}
        self.layers: list[_Affine] = []
        self.aliases: set[fx.Node] = set()
        self.computed = False

    def run_node(self, n: fx.Node) -> Any:
        before = {source: tuple(self.env[source].shape) for source in n.all_input_nodes if source in self.values}
        if n.op == "output":
            result = super().run_node(n)
            if not isinstance(n.args[0], fx.Node) or n.args[0] not in self.values:
                raise UnsupportedError("the module's output does not depend on its input, or is no tensor")
            self.layers.append(self.values[n.args[0]])
            return result
        args, options = self.fetch_args_kwargs_from_env(n)
        result = super().run_node(n)
        if n.op == "placeholder":
            zero = torch.zeros(result[0].numel(), dtype=torch.float64, device=result.device)
            self.values[n] = _Affine({0: ((),)}, zero, zero)
        elif before and (not asks_shape(n) or n.args[1:] == ("dtype",)):  # the precision here is not the program's
            if not isinstance(result, Tensor):
                raise UnsupportedError(f"{n.target} gives a {type(result).__name__} that depends on the input")
            self.values[n] = self.follow(n, args, options, before, result)
        elif not before and isinstance(result, Tensor):  # a tensor that is no parameter is a "_tensor_constant"
            self.computed = self.computed or n.op.startswith("call") or "_tensor_constant" in str(n.target)
        return result

    def follow(
        self, n: fx.Node, args: Any, options: Any, before: Mapping[fx.Node, tuple[int, ...]], result: Tensor
    ) -> _Affine:
        """Apply the rule for one node."""
        layer: Any = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        name = (
            f"{n.target} ({type(layer).__name__})"
            if layer is not None
            else str(getattr(n.target, "__name__", n.target))
        )
        shape = tuple(result.shape)
        if len(before) == 1 and (layer is not None or (n.args and n.args[0] in before)):
            (source,) = before
            value, size = self.values[source], before[source]
            if n.args and n.args[0] is source and all(arg is not source for arg in n.args[1:]):
                kind = type(layer)
                if getattr(layer, "inplace", False) or str(name).endswith("_") or options.get("inplace", False):
                    self.overwrite(n, name)
                if kind is nn.ReLU or n.target in (torch.relu, functional.relu, "relu", "relu_", torch.relu_):
                    return self.rectify(value)
                if kind in _UNMOVED or n.target in _VIEWS:
                    if shape[0] != size[0] or math.prod(shape) != math.prod(size):
                        raise UnsupportedError(f"{name} moves the batch axis")
                    self.aliases.add(n)
                    return value
                if kind in RULES:
                    part, bias, height = RULES[kind](layer, size[1:], shape[1:])
                    return value.then(part, bias, height)
        if n.target in _ARITHMETIC and len(args) == 2 and not options:
            return self.combine(n, args, shape, name)
        raise UnsupportedError(f"{name} is no known layer of a ReLU network")

    def overwrite(self, n: fx.Node, name: str) -> None:
        """Refuse an in-place change of a value that another node reads, too."""
        self.aliases.add(n)
        if overwrites(n, self.aliases):
            raise UnsupportedError(f"{name} changes in place a value that is used again")

    def rectify(self, value: _Affine) -> _Affine:
        """Make a ReLU a new source."""
        self.layers.append(value)
        zero = torch.zeros_like(value.bias)
        return _Affine({len(self.layers): ((),)}, zero, zero)

    def combine(self, n: fx.Node, args: Any, shape: tuple[int, ...], name: str) -> _Affine:
        """Read sums and differences, and products and quotients with a constant."""
        sign = _ARITHMETIC[n.target]
        terms = [self.values.get(arg) if isinstance(arg, fx.Node) else None for arg in n.args]
        moving = [tuple(arg.shape) for term, arg in zip(terms, args, strict=True) if term is not None]
        if any(size != shape for size in moving):
            raise UnsupportedError(f"{name} repeats a value to fit another shape")
        if sign in "iI":
            if terms[0] is None:
                raise UnsupportedError(f"{name} writes what depends on the input into a constant")
            self.overwrite(n, name)
        first, second = terms
        if first is not None and second is not None:
            if sign not in "+-iI":
                raise UnsupportedError(f"{name} multiplies two values that depend on the input")
            if sign in "-I":
                second = second.then(Scale(-torch.ones_like(second.bias)))
            joint = {
                source: (*first.terms.get(source, ()), *second.terms.get(source, ()))
                for source in {**first.terms, **second.terms}
            }
            return _Affine(joint, first.bias + second.bias, first.height + second.height)
        value = first if first is not None else second
        assert value is not None
        constant = torch.as_tensor(args[1 if first is not None else 0], dtype=torch.float64, device=value.bias.device)
        constant = constant.expand(shape)
        if not bool((constant == constant[:1]).all()):
            raise UnsupportedError(f"{name} treats the inputs of a batch differently")
        flat, ones = constant[0].flatten(), torch.ones_like(value.bias)
        if sign in "+i":
            return value.plus(flat)
        if sign in "-I":
            return value.plus(-flat) if first is not None else value.then(Scale(-ones), flat)
        if sign == "*":
            return value.then(Scale(flat.clone()))
        if first is None:
            raise UnsupportedError(f"{name} divides by a value that depends on the input")
        return value.then(Scale(ones / flat))

    def network(self, inputs: int) -> ReluNetwork:
        """Make the network; each sum of maps is folded into one matrix where that is small."""
        layers = []
        for value in self.layers:
            maps = {source: _folded(chains, value.bias) for source, chains in value.terms.items()}
            paths = {source: _path(chains, value.bias) for source, chains in value.terms.items()}
            layers.append(Layer(maps, value.bias, paths, value.height))
        return ReluNetwork(tuple(layers), inputs, self.computed)


def _folded(chains: tuple[tuple[Map, ...], ...], bias: Tensor) -> Map:
    """Make one map of a sum of chains: a matrix where that is small."""
    whole = _whole(chains, bias)
    if not isinstance(whole, Dense) and whole.inputs * whole.outputs <= DENSE_LIMIT:
        eye = torch.eye(whole.inputs, dtype=bias.dtype, device=bias.device)
        return Dense(whole.forward(eye).T.contiguous())
    return whole


def _path(chains: tuple[tuple[Map, ...], ...], bias: Tensor) -> Map:
    """Return the moduli along the paths of a sum of chains, which are not folded."""
    return _whole(tuple(tuple(part.absolute() for part in chain) for chain in chains), bias)


def _whole(chains: tuple[tuple[Map, ...], ...], bias: Tensor) -> Map:
    """Return a sum of chains without folding it."""
    parts: list[Map] = []
    for chain in chains:
        if not chain:
            parts.append(Scale(torch.ones_like(bias)))
        else:
            parts.append(chain[0] if len(chain) == 1 else Chain(chain))
    return parts[0] if len(parts) == 1 else Sum(tuple(parts))


Rule = tuple[Map, Tensor | None, Tensor | None]
"""Rule of a layer: the map, the bias or None, and the moduli that went into the bias, if they are not just its own."""


def _linear(layer: nn.Linear, before: tuple[int, ...], after: tuple[int, ...]) -> Rule:
    if len(before) != 1:
        raise UnsupportedError(f"a linear layer on features of shape {before}; flatten them first")
    return Dense(layer.weight), layer.bias, None


def _conv2d(layer: nn.Conv2d, before: tuple[int, ...], after: tuple[int, ...]) -> Rule:
    if len(before) != 3:
        raise UnsupportedError(f"a convolution on features of shape {before}, without channels")
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise UnsupportedError("a convolution whose padding is not given as a number of zeros")
    part = Convolution(
        layer.weight, before, after, _two(layer.stride), _two(layer.padding), _two(layer.dilation), layer.groups
    )
    bias = None if layer.bias is None else layer.bias.view(-1, 1, 1).expand(after).flatten()
    return part, bias, None


def _average(layer: nn.AvgPool2d, before: tuple[int, ...], after: tuple[int, ...]) -> Rule:
    if len(before) != 3:
        raise UnsupportedError(f"average pooling on features of shape {before}, without channels")
    kernel, padding = _two(layer.kernel_size), _two(layer.padding)
    if layer.ceil_mode or layer.divisor_override is not None or (any(padding) and not layer.count_include_pad):
        raise UnsupportedError("average pooling with unequal weights (ceil_mode, divisor_override, count_include_pad)")
    weight = torch.full((before[0], 1, *kernel), 1 / math.prod(kernel), dtype=torch.float64)
    return Convolution(weight, before, after, _two(layer.stride), padding, groups=before[0]), None, None


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, before: tuple[int, ...], after: tuple[int, ...]) -> Rule:
    if layer.running_mean is None or layer.running_var is None:
        raise UnsupportedError("batch normalisation without running statistics looks at the whole batch")
    scale = 1 / (layer.running_var + layer.eps).sqrt()
    scale = scale if layer.weight is None else scale * layer.weight
    bias = -layer.running_mean * scale
    height = bias.abs()  # what may cancel below
    if layer.bias is not None:
        bias, height = bias + layer.bias, height + layer.bias.abs()
    ones = [1] * (len(before) - 1)
    scale, bias, height = (part.view(-1, *ones).expand(before).flatten() for part in (scale, bias, height))
    return Scale(scale, entry_roundings=8), bias, height


def _two(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


RULES: Mapping[type[nn.Module], Callable[[Any, tuple[int, ...], tuple[int, ...]], Rule]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.AvgPool2d: _average,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
}
"""Affine layers, each with the function that makes its map, bias and moduli from the shapes before and after it."""


_UNMOVED = (nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Unflatten)


_VIEWS = (torch.flatten, "flatten", "view", "reshape", torch.reshape, "contiguous", "unsqueeze", "squeeze")


_ARITHMETIC = {
    operator.add: "+",
    torch.add: "+",
    "add": "+",
    operator.iadd: "i",
    "add_": "i",
    operator.sub: "-",
    torch.sub: "-",
    "sub": "-",
    operator.isub: "I",
    "sub_": "I",
    operator.mul: "*",
    torch.mul: "*",
    "mul": "*",
    operator.truediv: "/",
    torch.div: "/",
    "div": "/",
}
