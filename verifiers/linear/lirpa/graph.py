"""auto-LiRPA's graph of a network, the ball over which it is bounded, and the networks that are refused.

The package adds one eps per input; L1 and L2 balls cut by the input domain; bounds of first layers over these balls;
and checks that the graph is the network that was asked about. It does not use auto-LiRPA's own handling of L1 and L2,
because its interval arithmetic forgets the ball at the first addition (0.3: bounds of width zero).
"""

import copy
import inspect
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from certbench.core.classifier import Classifier
from certbench.core.margins import Bounds, margin_rows
from certbench.core.memory import Cost, out_of_memory
from certbench.core.threat import ThreatModel
from certbench.errors import MissingBackendError, NumericalError, UnsupportedError
from certbench.networks.folding import layered
from certbench.networks.layers import Network
from certbench.networks.reading import logits_of, read, relu_network
from certbench.verifiers.bounds.intervals import first_layers
from certbench.verifiers.bounds.region import Region
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.linear.lirpa import functions
from certbench.verifiers.linear.lirpa.costs import predicted
from certbench.verifiers.linear.lirpa.perturbation import perturbation
from certbench.verifiers.linear.lirpa.release_0_3 import auto_lirpa
from certbench.verifiers.linear.lirpa.writing import Written

TINY, WIDE = 1e-9, 0.1
"""Radii of the balls over which a graph is tried."""

FUNCTIONS = ("BoundRelu", "BoundTanh", "BoundSigmoid", "BoundFunction")
"""Nodes of auto-LiRPA's graph that stand for activations."""


@dataclass(frozen=True, eq=False)
class LirpaState(NetworkState):
    """The network as auto-LiRPA sees it. `network` is what the module was written from.

    Attributes:
        module: the network, written for auto-LiRPA.
        mode: how auto-LiRPA stores the bounds of convolutions.
        bounded: auto-LiRPA's graph of it.
        names: by hidden layer, the name of the node whose value it is; None: the identity comes after it.
    """

    module: nn.Module = field(kw_only=True)
    mode: str = field(kw_only=True)
    bounded: Any = field(kw_only=True)
    names: tuple[str | None, ...] = field(kw_only=True)

    @property
    def affine(self) -> bool:
        """Whether the outputs are affine in the input."""
        return not any(self.names)


@dataclass(frozen=True)
class Lirpa:
    """A method of auto-LiRPA: one graph, one perturbation set, one call per bound.

    Attributes:
        method: auto-LiRPA's name of the method.
        relus: whether the network must be a ReLU network.
        linear: whether the last quantity that is bounded over the ball is the linear function below the margins.
        sharpened: whether bounds of hidden layers are intersected with intervals, as our own CROWN's are.
        options: options for auto-LiRPA's graph.
    """

    method: str = "CROWN"
    relus: bool = False
    linear: bool = True
    sharpened: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> LirpaState:
        """Write the network for auto-LiRPA; refuse it unless the graph computes its outputs and a bound comes out.

        Raises:
            UnsupportedError: the network cannot be read, written or bounded.
            MissingBackendError: auto-LiRPA is not installed.
        """
        network = relu_network(classifier) if self.relus else layered(read(classifier), relus=True, others=True)
        self._predicted(network, classifier, threat).check(f"auto-LiRPA's {self.method}")
        module = Written(network).eval()
        double = logits_of(classifier)
        patches = any(isinstance(layer, nn.Conv2d) for layer in module.modules())
        for mode in ("patches", "matrix") if patches else ("matrix",):  # patches is faster, but knows fewer layers
            try:
                with quiet() as said:
                    bounded = self.graph(module, classifier, mode)
                    names = iter(_names(bounded))
                    state = LirpaState(
                        double,
                        threat,
                        network,
                        classifier.dtype,
                        module=module,
                        mode=mode,
                        bounded=bounded,
                        names=tuple(None if isinstance(part, nn.Identity) else next(names) for part in module.after),
                    )
                    self._rehearse(state)
                return state
            except (UnsupportedError, MissingBackendError):
                raise
            except Exception as error:  # whatever auto-LiRPA raises on a layer it does not know, or bounds wrongly
                if out_of_memory(error):
                    raise
                failure = error
        unknown = sorted({line for line in said if line.startswith("Name: ")})
        detail = "; ".join(unknown) or f"{type(failure).__name__}: {failure}"
        raise UnsupportedError(f"auto-LiRPA cannot bound this network: {detail}") from failure

    def cost(self, state: LirpaState) -> Cost:
        """Predict what auto-LiRPA needs, from sizes."""
        return self._predicted(state.network, state.classifier, state.threat)

    def _predicted(self, network: Network, classifier: Classifier, threat: ThreatModel) -> Cost:
        return predicted(self.method, network, max(classifier.num_classes - 1, 2), threat, classifier.device)

    def single(self, state: LirpaState) -> LirpaState:
        """Make the graph anew, from the module in float32."""
        with torch.random.fork_rng(devices=[]):
            module = copy.deepcopy(state.module).float()
            bounded = self.graph(module, state.classifier, state.mode)
        classifier = replace(state.classifier, module=copy.deepcopy(state.classifier.module).float())
        network = state.network.to(torch.float32)
        return replace(state, classifier=classifier, network=network, module=module, bounded=bounded)

    def graph(self, module: nn.Module, classifier: Classifier, mode: str) -> Any:
        """Make auto-LiRPA's graph of the module; `mode` is how it stores the bounds of convolutions.

        auto-LiRPA can bound only the neurons that are unstable somewhere in the batch, and the others by intervals.
        This shortcut is off: a radius must not depend on the input's neighbours.
        """
        dtype = next((part.dtype for part in module.parameters()), torch.float64)
        example = torch.zeros(1, *classifier.input_shape, dtype=dtype, device=classifier.device)
        options = {"conv_mode": mode, "sparse_intermediate_bounds": False, "verbosity": 0, **self.options}
        known = {"bound_opts": options, "device": classifier.device, "custom_ops": functions.operators()}
        with precision_of(dtype), functions.traced():
            graph = auto_lirpa().BoundedModule(module, example, **known)
        graph.eval()
        return graph

    def bound(
        self,
        state: LirpaState,
        inside: Any,
        rows: Float[Tensor, "n k outputs"],
        known: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> Float[Tensor, "n k"]:
        """Return lower bounds of `rows` times the outputs; `inside` is the batch with its perturbation set.

        `known` are bounds of all hidden layers, if they are known already.
        """
        if known is not None:
            return backward(state, inside, rows, self.method, known)
        first = None if self.method.startswith("forward") else first_bounds(state, inside)
        reference = _intervals(state, inside) if self.sharpened else None
        return backward(state, inside, rows, self.method, first, reference)

    @torch.no_grad()
    def lower(
        self, state: LirpaState, x: Float[Tensor, "n ..."], rows: Float[Tensor, "n k outputs"], eps: Float[Tensor, " n"]
    ) -> Bounds:
        """Return auto-LiRPA's lower bounds, with the linear functions of the input whose minima they are."""
        inside = auto_lirpa().BoundedTensor(x, perturbation(state.threat, x, eps))
        with precision_of(x.dtype):
            # An affine network needs no relaxation, and backward propagation bounds it exactly.
            lower = backward(state, inside, rows) if state.affine else self.bound(state, inside, rows)
        shape = tuple(rows.shape[:2])
        if lower.shape != shape:
            raise NumericalError(f"auto-LiRPA returned bounds of shape {tuple(lower.shape)}, not {shape}")
        logits = state.classifier(x)
        centre = (rows @ logits[..., None]).squeeze(-1)
        if bool((lower > centre + 1e-6 * _spread(logits)[:, None]).any()):
            raise NumericalError("auto-LiRPA's lower bound exceeds the margin at the centre of the ball")
        line = inside.ptb.last
        if line is None or tuple(line.rows.shape[:2]) != shape or not (self.linear or state.affine):
            return Bounds(lower)
        return Bounds(lower, line.rows, lower + line.change)

    def _rehearse(self, state: LirpaState) -> None:
        """Refuse a graph that computes other logits, or whose bounds are wrong on a few balls.

        Over a tiny ball every relaxation is almost exact, so the bound must be close to the margin from both sides. For
        example, 0.3's backward bounds of overlapping or padded average pooling are those of another layer. Over a
        larger ball no bound, of a margin or of a hidden neuron, may exclude a sampled point. That ball costs what one
        bound of one input costs; the tiny one costs little where hidden neurons are bounded backwards, as their values
        bound them.
        """
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(2, *state.classifier.input_shape, generator=generator, dtype=torch.float64)
        x = x.to(state.classifier.device)
        if state.threat.domain is not None:
            low, high = state.threat.ends(x)
            low, high = (torch.as_tensor(end).to(x).nan_to_num(posinf=1.0, neginf=0.0) for end in (low, high))
            x = state.threat.clamp(low + (high - low) * x)
        logits = state.classifier(x)
        scale = _spread(logits).max().clamp(min=1e-30)
        if not bool((torch.cat([state.classifier(row[None]) for row in x]) - logits).abs().max() <= 1e-8 * scale):
            raise UnsupportedError(f"{state.classifier.name} gives an input other logits alone than in a batch")
        hidden = [*state.network.preactivations(x.flatten(1))[:-1], logits]
        with torch.no_grad():
            for name, value in zip((*state.names, state.bounded.final_name), hidden, strict=True):
                if name is not None:
                    found = state.bounded(x, final_node_name=name).flatten(1)
                    size = scale if value is logits else value.abs().max().clamp(min=1e-30)
                    error = (found - value).abs().max() if found.shape == value.shape else math.inf
                    if not bool(error <= 1e-8 * size):
                        raise UnsupportedError(
                            f"auto-LiRPA's graph of this network computes other values (by {float(error):.1e})"
                        )
        rows = _questions(logits)
        with torch.no_grad(), precision_of(x.dtype):
            ball = x.new_full((1,), TINY)
            inside = auto_lirpa().BoundedTensor(x[:1], perturbation(state.threat, x[:1], ball))
            near = None
            if self.method.startswith("CROWN"):
                near = _shaped(state, {i: (value[:1] - TINY, value[:1] + TINY) for i, value in enumerate(hidden[:-1])})
            tiny = backward(state, inside, rows[:1]) if state.affine else self.bound(state, inside, rows[:1], near)
        gap = (tiny - (rows @ logits[..., None]).squeeze(-1)[:1]).abs().max()
        if not bool(gap <= 1e-4 * scale):
            raise NumericalError(f"over a tiny ball its bound is off the margin by {float(gap):.1e}")
        eps = x.new_full((1,), WIDE)
        bound = self.lower(state, x[1:], rows[1:], eps).lower
        step = torch.randn(256, x[0].numel(), generator=generator, dtype=x.dtype).to(x.device)
        step = step.sign() if state.threat.p == math.inf else step
        points = x[1:].flatten(1) + WIDE * step / torch.linalg.vector_norm(
            step, ord=state.threat.p, dim=1, keepdim=True
        )
        points = state.threat.clamp(points)
        *inner, outputs = state.network.preactivations(points)
        if bool((bound > (outputs @ rows[1].T).amin(dim=0) + 1e-6 * scale).any()):
            raise NumericalError("its bound exceeds the margin at points inside the ball")
        for name, value in zip(state.names, inner, strict=True):
            ends = [getattr(state.bounded[name], end, None) for end in ("lower", "upper")] if name else []
            known = [end.flatten(1) for end in ends if isinstance(end, Tensor)]  # not all methods keep them
            if len(known) == 2:
                room = 1e-6 * value.abs().max()
                if bool(((value < known[0] - room) | (value > known[1] + room)).any()):
                    raise NumericalError("its bounds of a hidden layer exclude values at points inside the ball")


def backward(
    state: LirpaState,
    inside: Any,
    rows: Float[Tensor, "n k outputs"],
    method: str = "CROWN",
    known: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    reference: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> Float[Tensor, "n k"]:
    """Return auto-LiRPA's lower bounds of `rows` times the outputs, by the method of that name.

    Args:
        state: the network.
        inside: the batch with its perturbation set.
        rows: linear functions to bound, one matrix per input.
        method: auto-LiRPA's name of the method.
        known: bounds of intermediate nodes that are known already.
        reference: bounds of intermediate nodes with which its own are intersected.
    """
    with torch.set_grad_enabled(method == "CROWN-Optimized"):
        options: dict[str, Any] = {_layers_argument(state.bounded): known or None}
        if reference:
            options["reference_bounds"] = reference
        lower, _ = state.bounded.compute_bounds(x=(inside,), C=rows, method=method, bound_upper=False, **options)
    assert isinstance(lower, Tensor)
    return lower.detach()


def _layers_argument(bounded: Any) -> str:
    """Return the release's name of the argument that takes bounds of intermediate nodes."""
    names = inspect.signature(bounded.compute_bounds).parameters
    return "interm_bounds" if "interm_bounds" in names else "intermediate_layer_bounds"


def _names(bounded: Any) -> list[str]:
    """List the inputs of the functions, in the order of the trace, which is that of the layers."""
    return [node.inputs[0].name for node in bounded._modules.values() if type(node).__name__ in FUNCTIONS]


def first_bounds(state: LirpaState, inside: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Bound the layers that read the input alone over the ball, cut by the domain."""
    region = Region(state.threat, inside.detach().flatten(1).as_subclass(Tensor), inside.ptb.radii)
    return _shaped(state, first_layers(state.network, region))


def _shaped(state: LirpaState, bounds: Mapping[int, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Give bounds of hidden layers the names and the shapes of their nodes."""
    found = {}
    for i, ends in bounds.items():
        name = state.names[i]
        if name is not None:
            shape = state.bounded[name].output_shape[1:]
            found[name] = (ends[0].view(-1, *shape), ends[1].view(-1, *shape))
    return found


def _intervals(state: LirpaState, inside: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Bound all hidden layers by auto-LiRPA's intervals, from the box around the ball."""
    state.bounded.compute_bounds(x=(inside,), method="IBP")
    return layer_bounds(state)


def layer_bounds(state: LirpaState) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the bounds of the hidden layers that the last computation used."""
    nodes = [state.bounded[name] for name in state.names if name is not None]
    return {node.name: (node.lower.detach(), node.upper.detach()) for node in nodes}


def _questions(logits: Float[Tensor, "n outputs"]) -> Float[Tensor, "n k outputs"]:
    """Return the rows on which a graph is tried: the margins, or for a single output, it and its negative."""
    if logits.shape[1] > 1:
        return margin_rows(logits.argmax(dim=1), logits.shape[1]).to(logits)
    return torch.tensor([[1.0], [-1.0]], dtype=logits.dtype, device=logits.device).expand(len(logits), 2, 1)


def _spread(logits: Float[Tensor, "n classes"]) -> Float[Tensor, " n"]:
    """Return how far the logits lie apart: their scale without their mean, plus an allowance for rounding."""
    if logits.shape[1] == 1:
        return logits.abs().amax(dim=1)
    apart = (logits - logits.mean(dim=1, keepdim=True)).abs().amax(dim=1)
    return apart + 1e-6 * logits.abs().amax(dim=1)


@contextmanager
def precision_of(dtype: torch.dtype) -> Iterator[None]:
    """Make a precision the default, because auto-LiRPA makes tensors in the default one.

    auto-LiRPA 0.3 casts the best bound to torch's default precision: float32 could round a bound in float64 upwards.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Collect what auto-LiRPA logs while it converts, instead of printing it."""
    said: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger = logging.getLogger("auto_LiRPA")
    handler, handlers, propagate = Collect(logging.ERROR), logger.handlers[:], logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield said
    finally:
        logger.handlers, logger.propagate = handlers, propagate
