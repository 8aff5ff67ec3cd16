"""auto-LiRPA's graph of a network, the ball over which it is bounded, and the networks that are refused."""

import copy
import inspect
import logging
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from certbench.core.certifier import MarginCertifier
from certbench.core.claims import Guarantee
from certbench.core.classifier import Classifier
from certbench.core.margins import Bounds, MarginState, margin_rows
from certbench.core.memory import out_of_memory
from certbench.core.threat import ThreatModel
from certbench.errors import MissingBackendError, NumericalError, UnsupportedError
from certbench.networks.layers import Network
from certbench.networks.reading import relu_network
from certbench.verifiers.linear.lirpa.nodes import first_layer, refuse_branches, refuse_known_wrong
from certbench.verifiers.linear.lirpa.perturbation import perturbation
from certbench.verifiers.linear.lirpa.release_0_3 import auto_lirpa
from certbench.verifiers.linear.lirpa.rewriting import as_expected, dense_layers


@dataclass(frozen=True, eq=False)
class LirpaState(MarginState):
    """The network as auto-LiRPA sees it.

    Attributes:
        module: the network in float64, with small affine layers written as dense ones.
        mode: how auto-LiRPA stores the bounds of convolutions.
        bounded: auto-LiRPA's graph of it.
        first: for L1 and L2, the nodes that depend affinely on the input and feed a nonlinear node, each with the dual
            norm of every output's row: node = row . x + const, so the ball moves it by eps ||row||_q.
        affine: whether the logits themselves are affine in the input.
        program: precision of the classifier as it was given.
    """

    module: nn.Module
    mode: str
    bounded: Any
    first: dict[str, Float[Tensor, "..."]]
    affine: bool
    program: torch.dtype

    @cached_property
    def network(self) -> Network:
        """The network as our own engine sees it, for its rounding errors.

        Raises:
            UnsupportedError: it is no ReLU network.
        """
        return relu_network(self.classifier)


class Lirpa(MarginCertifier[LirpaState]):
    """The part that the certifiers of this package share: one graph, one perturbation set, one call per bound."""

    guarantee = Guarantee.SOUND
    norms = frozenset({1.0, 2.0, math.inf})
    linear: ClassVar[bool] = True
    """Whether the last quantity that is bounded over the ball is the linear function below the margins."""

    @abstractmethod
    def bound(self, state: LirpaState, inside: Any, rows: Float[Tensor, "n k classes"]) -> Float[Tensor, "n k"]:
        """Return lower bounds of `rows` times the logits; `inside` is the batch with its perturbation set."""

    def error(
        self, state: LirpaState, x: Float[Tensor, "n ..."], rows: Float[Tensor, "n k outputs"], eps: Float[Tensor, " n"]
    ) -> Float[Tensor, "n k"]:
        """Return the amount that is taken off the bounds for rounding; 0, unless a method counts rounding errors."""
        del self, state, x, eps
        return torch.zeros_like(rows[..., 0])

    def bound_options(self) -> dict[str, Any]:
        """Return options for auto-LiRPA's graph."""
        return {}

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> LirpaState:
        """Convert the network, and refuse it unless the conversion computes its logits and a bound comes out."""
        hidden = classifier.hidden_code()
        if hidden is not None:
            raise UnsupportedError(f"{hidden}, which auto-LiRPA's trace may freeze")
        double = classifier.double()
        refuse_branches(double)
        module = dense_layers(as_expected(double.module), double.input_shape)
        patches = any(isinstance(layer, nn.Conv2d) for layer in module.modules())
        for mode in ("patches", "matrix") if patches else ("matrix",):  # patches is faster, but knows fewer layers
            try:
                with quiet() as said:
                    bounded = self.graph(module, classifier, mode)
                    refuse_known_wrong(bounded)
                    self.refuse(bounded)
                    first, affine = first_layer(bounded, classifier.input_shape, threat)
                    state = LirpaState(double, threat, module, mode, bounded, first, affine, classifier.dtype)
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

    def single(self, state: LirpaState) -> LirpaState:
        """Make the graph anew, from the module in float32."""
        with torch.random.fork_rng(devices=[]):
            module = copy.deepcopy(state.module).float()
            bounded = self.graph(module, state.classifier, state.mode)
        first = {name: norms.float() for name, norms in state.first.items()}
        classifier = replace(state.classifier, module=copy.deepcopy(state.classifier.module).float())
        return replace(state, classifier=classifier, module=module, bounded=bounded, first=first)

    def refuse(self, bounded: Any) -> None:
        """Raise `UnsupportedError` for a graph that auto-LiRPA can bound, but not in the way that this method needs."""
        del bounded

    def graph(self, module: nn.Module, classifier: Classifier, mode: str) -> Any:
        """Make auto-LiRPA's graph of the module; `mode` is how it stores the bounds of convolutions.

        auto-LiRPA can bound only the neurons that are unstable somewhere in the batch, and the others by intervals.
        This shortcut is off: a radius must not depend on the input's neighbours.
        """
        dtype = next((part.dtype for part in module.parameters()), torch.float64)
        example = torch.zeros(1, *classifier.input_shape, dtype=dtype, device=classifier.device)
        options = {"conv_mode": mode, "sparse_intermediate_bounds": False, "verbosity": 0, **self.bound_options()}
        with precision_of(dtype):
            graph = auto_lirpa().BoundedModule(module, example, bound_opts=options, device=classifier.device)
        graph.eval()
        return graph

    def lower(
        self, state: LirpaState, x: Float[Tensor, "n ..."], rows: Float[Tensor, "n k outputs"], eps: Float[Tensor, " n"]
    ) -> Bounds:
        """Return auto-LiRPA's lower bounds, with the linear functions of the input whose minima they are."""
        return self._bounds(state, x, rows, eps).less(self.error(state, x, rows, eps))

    def _bounds(
        self, state: LirpaState, x: Float[Tensor, "n ..."], rows: Float[Tensor, "n k outputs"], eps: Float[Tensor, " n"]
    ) -> Bounds:
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
        example, 0.3's backward bounds of overlapping or padded average pooling are those of another layer. Over larger
        balls the bound must not exceed the margin at sampled points.
        """
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(2, *state.classifier.input_shape, generator=generator, dtype=torch.float64)
        x = x.to(state.classifier.device)
        if state.threat.domain is not None:
            low, high = state.threat.domain
            x = low + (high - low) * x
        logits = state.classifier(x)
        scale = _spread(logits).max().clamp(min=1e-30)
        if not bool((torch.cat([state.classifier(row[None]) for row in x]) - logits).abs().max() <= 1e-8 * scale):
            raise UnsupportedError(f"{state.classifier.name} gives an input other logits alone than in a batch")
        with torch.no_grad():
            error = (state.bounded(x) - logits).abs().max()
        if not bool(error <= 1e-8 * scale):
            raise UnsupportedError(f"auto-LiRPA's graph of this network computes other logits (by {float(error):.1e})")
        rows = _questions(logits)
        tiny = self._bounds(state, x, rows, x.new_full((2,), 1e-9)).lower
        gap = (tiny - (rows @ logits[..., None]).squeeze(-1)).abs().max()
        if not bool(gap <= 1e-4 * scale):
            raise NumericalError(f"over a tiny ball its bound is off the margin by {float(gap):.1e}")
        for radii in ([0.01, 0.1], [0.5, 1.0]):
            eps = torch.tensor(radii, dtype=x.dtype, device=x.device)
            bound = self._bounds(state, x, rows, eps).lower
            step = torch.randn(2, 128, x[0].numel(), generator=generator, dtype=x.dtype).to(x.device)
            step = step.sign() if state.threat.p == math.inf else step
            step = step / torch.linalg.vector_norm(step, ord=state.threat.p, dim=2, keepdim=True) * eps[:, None, None]
            points = x.flatten(1)[:, None] + step
            if state.threat.domain is not None:
                points = points.clamp(*state.threat.domain)
            outputs = state.classifier(points.view(-1, *x.shape[1:])).view(2, 128, -1)
            if bool((bound > (outputs @ rows.mT).amin(dim=1) + 1e-6 * scale).any()):
                raise NumericalError("its bound exceeds the margin at points inside the ball")


def backward(
    state: LirpaState,
    inside: Any,
    rows: Float[Tensor, "n k classes"],
    method: str = "CROWN",
    layers: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> Float[Tensor, "n k"]:
    """Return auto-LiRPA's lower bounds of `rows` times the logits, by the method of that name.

    Args:
        state: the network.
        inside: the batch with its perturbation set.
        rows: linear functions to bound, one matrix per input.
        method: auto-LiRPA's name of the method.
        layers: bounds of intermediate nodes that are known already.
    """
    if not method.startswith("forward"):  # it bounds the first layers over the ball by itself
        layers = {**_first_bounds(state, inside), **(layers or {})}
    with torch.set_grad_enabled(torch.is_grad_enabled() and method == "CROWN-Optimized"):
        known = {_layers_argument(state.bounded): layers or None}
        lower, _ = state.bounded.compute_bounds(x=(inside,), C=rows, method=method, bound_upper=False, **known)
    assert isinstance(lower, Tensor)
    return lower.detach()


def _layers_argument(bounded: Any) -> str:
    """Return the release's name of the argument that takes bounds of intermediate nodes."""
    names = inspect.signature(bounded.compute_bounds).parameters
    return "interm_bounds" if "interm_bounds" in names else "intermediate_layer_bounds"


@torch.no_grad()
def _first_bounds(state: LirpaState, inside: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Bound the nodes in `state.first` by the ball, and by the box where the domain cuts it."""
    bounds = {}
    for name, rows in state.first.items():
        centre = state.bounded(inside, final_node_name=name)
        reach = rows * inside.ptb.radii.view(-1, *[1] * (centre.dim() - 1))
        low, high = centre - reach, centre + reach
        if state.threat.domain is not None:
            boxed = state.bounded.compute_bounds(x=(inside,), method="IBP", final_node_name=name)
            low, high = torch.maximum(low, boxed[0]), torch.minimum(high, boxed[1])
        bounds[name] = (low, high)
    return bounds


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
