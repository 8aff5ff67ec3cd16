"""Linear relaxation based bounds through auto-LiRPA (Xu et al., 2020): IBP, CROWN and their relatives.

What is added here: one eps per input; L1 and L2 balls cut by the input domain; tight first-layer bounds for L1 and
L2; and checks that the converted graph is the network that was asked about. auto-LiRPA's own handling of L1 and L2 is
not used, because its interval arithmetic forgets the ball at the first addition (0.3: bounds of width zero).
"""

import copy
import inspect
import logging
import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from certbench.core.ball import box, support
from certbench.core.certifier import MarginCertifier
from certbench.core.claims import Guarantee
from certbench.core.classifier import Classifier
from certbench.core.margins import Bounds, MarginState, margin_rows
from certbench.core.memory import out_of_memory
from certbench.core.search import RadiusSearch, Secant
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError, MissingBackendError, NumericalError, UnsupportedError
from certbench.networks.relu import ReluNetwork
from certbench.verifiers.bounds.backward import layer_bounds
from certbench.verifiers.bounds.intervals import interval_bounds, intervals
from certbench.verifiers.bounds.proof import RelaxationProof, adaptive, parallel, sufficient
from certbench.verifiers.bounds.region import Region
from certbench.verifiers.bounds.rounding import bound_errors, evaluation_error
from certbench.verifiers.linear.lirpa.release_0_3 import auto_lirpa


@dataclass(frozen=True, eq=False)
class LirpaState(MarginState):
    """The network as auto-LiRPA sees it.

    Attributes:
        module: the float64 network, small affine layers written as dense ones.
        mode: how auto-LiRPA stores the bounds of convolutions.
        bounded: auto-LiRPA's graph of it.
        first: for L1 and L2, the nodes that depend affinely on the input and feed something nonlinear, each with
            the dual norm of every output's row: node = row . x + const, so the ball moves it by eps ||row||_q.
        affine: whether the logits themselves are affine in the input.
        program: the precision of the classifier as it came.
    """

    module: nn.Module
    mode: str
    bounded: Any
    first: dict[str, Float[Tensor, "..."]]
    affine: bool
    program: torch.dtype

    @cached_property
    def network(self) -> ReluNetwork:
        """The network as our own engine sees it, for what is known of rounding there.

        Raises:
            UnsupportedError: it is no ReLU network.
        """
        return ReluNetwork.of(self.classifier)


class Lirpa(MarginCertifier[LirpaState]):
    """The shared half of the certifiers below: one graph, one perturbation set, one call a bound."""

    guarantee = Guarantee.SOUND
    norms = frozenset({1.0, 2.0, math.inf})
    linear: ClassVar[bool] = True
    """Whether the last thing that is bounded over the ball is the linear function below the margins."""

    @abstractmethod
    def bound(self, state: LirpaState, inside: Any, rows: Float[Tensor, "n k classes"]) -> Float[Tensor, "n k"]:
        """Lower bounds of `rows` times the logits; `inside` is the batch with its perturbation set."""

    def error(
        self, state: LirpaState, x: Float[Tensor, "n ..."], rows: Float[Tensor, "n k outputs"], eps: Float[Tensor, " n"]
    ) -> Float[Tensor, "n k"]:
        """What is taken off the bounds for rounding; nothing, unless a method offers to."""
        del self, state, x, eps
        return torch.zeros_like(rows[..., 0])

    def bound_options(self) -> dict[str, Any]:
        """Options of auto-LiRPA's graph."""
        return {}

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> LirpaState:
        """Convert the network, and refuse it unless the conversion computes its logits and a bound comes out."""
        hidden = classifier.hidden_code()
        if hidden is not None:
            raise UnsupportedError(f"{hidden}, which auto-LiRPA's trace may freeze")
        double = classifier.double()
        _refuse_branches(double)
        module = _dense_layers(_as_expected(double.module), double.input_shape)
        patches = any(isinstance(layer, nn.Conv2d) for layer in module.modules())
        for mode in ("patches", "matrix") if patches else ("matrix",):  # patches is faster, but knows fewer layers
            try:
                with _quiet() as said:
                    bounded = self.graph(module, classifier, mode)
                    _refuse_known_wrong(bounded)
                    self.refuse(bounded)
                    first, affine = _first_layer(bounded, classifier.input_shape, threat)
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
        """The graph is made anew, of the module in float32."""
        with torch.random.fork_rng(devices=[]):
            module = copy.deepcopy(state.module).float()
            bounded = self.graph(module, state.classifier, state.mode)
        first = {name: norms.float() for name, norms in state.first.items()}
        classifier = replace(state.classifier, module=copy.deepcopy(state.classifier.module).float())
        return replace(state, classifier=classifier, module=module, bounded=bounded, first=first)

    def refuse(self, bounded: Any) -> None:
        """Raise `UnsupportedError` for a graph that auto-LiRPA can bound, but not in the way that this method means."""
        del bounded

    def graph(self, module: nn.Module, classifier: Classifier, mode: str) -> Any:
        """auto-LiRPA's graph of the module; `mode` is how it stores the bounds of convolutions.

        Its shortcut of bounding only neurons that are unstable somewhere in the batch, and the others by intervals, is
        off: a radius must not depend on the input's neighbours.
        """
        dtype = next((part.dtype for part in module.parameters()), torch.float64)
        example = torch.zeros(1, *classifier.input_shape, dtype=dtype, device=classifier.device)
        options = {"conv_mode": mode, "sparse_intermediate_bounds": False, "verbosity": 0, **self.bound_options()}
        with _precision(dtype):
            graph = auto_lirpa().BoundedModule(module, example, bound_opts=options, device=classifier.device)
        graph.eval()
        return graph

    def lower(
        self, state: LirpaState, x: Float[Tensor, "n ..."], rows: Float[Tensor, "n k outputs"], eps: Float[Tensor, " n"]
    ) -> Bounds:
        """auto-LiRPA's lower bounds, with the linear function of the input that they are the minima of."""
        return self._bounds(state, x, rows, eps).less(self.error(state, x, rows, eps))

    def _bounds(
        self, state: LirpaState, x: Float[Tensor, "n ..."], rows: Float[Tensor, "n k outputs"], eps: Float[Tensor, " n"]
    ) -> Bounds:
        inside = auto_lirpa().BoundedTensor(x, _perturbation(state.threat, x, eps))
        with _precision(x.dtype):
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

        Over a tiny ball every relaxation is all but exact, so the bound must meet the margin from both sides: 0.3's
        backward bounds of overlapping or padded average pooling, for one, are those of another layer. Over larger
        balls it must not exceed the margin at sampled points.
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


@dataclass(frozen=True)
class IBP(Lirpa):
    """Interval bound propagation (Gowal et al., 2018; Mirman et al., 2018).

    Attributes:
        rounding_safe: whether bounds are lowered by an a-priori bound of their own rounding errors and of those that
            the float program itself makes, so that the claim is about what the program computes; for ReLU networks.
    """

    rounding_safe: bool = False
    search: RadiusSearch = field(default_factory=Secant)

    linear: ClassVar[bool] = False

    def arithmetic(self, state: LirpaState) -> str:
        """The float program's, if its errors are counted."""
        return str(state.program) if self.rounding_safe else "real"

    def error(
        self, state: LirpaState, x: Float[Tensor, "n ..."], rows: Float[Tensor, "n k outputs"], eps: Float[Tensor, " n"]
    ) -> Float[Tensor, "n k"]:
        """Intervals are sums of the same products as the linear bounds that `rounding` speaks of, without intercepts.

        Raises:
            UnsupportedError: the network is no ReLU network.
        """
        if not self.rounding_safe:
            return torch.zeros_like(rows[..., 0])
        region = Region(state.threat, x.flatten(1), eps)
        errors = bound_errors(state.network, region)
        bounds = interval_bounds(state.network, region).widened(errors)
        error = errors[-1] + evaluation_error(state.network, region, bounds, state.program)
        return (rows.abs() @ error[..., None]).squeeze(-1) * (1 + 1e-9)

    def bound(self, state: LirpaState, inside: Any, rows: Float[Tensor, "n k classes"]) -> Float[Tensor, "n k"]:
        """Intervals all the way; the last layer is merged with the margins."""
        return backward(state, inside, rows, "IBP")

    def witness(
        self, state: LirpaState, x: Float[Tensor, "1 ..."], label: Int[Tensor, " 1"], eps: Float[Tensor, " 1"]
    ) -> RelaxationProof:
        """Intervals, by our own engine, which knows ReLU networks alone."""
        del label
        region = Region(state.threat, x.flatten(1), eps)
        return RelaxationProof(intervals(state.network, region), None, None)


@dataclass(frozen=True)
class CrownIBP(Lirpa):
    """CROWN-IBP: intervals inside, one backward linear bound at the end (Zhang et al., 2020)."""

    search: RadiusSearch = field(default_factory=Secant)

    def bound(self, state: LirpaState, inside: Any, rows: Float[Tensor, "n k classes"]) -> Float[Tensor, "n k"]:
        """Intermediate bounds by intervals."""
        return backward(state, inside, rows, "CROWN-IBP")

    def witness(
        self, state: LirpaState, x: Float[Tensor, "1 ..."], label: Int[Tensor, " 1"], eps: Float[Tensor, " 1"]
    ) -> RelaxationProof:
        """Intervals, by our own engine, which knows ReLU networks alone, and CROWN's slopes."""
        region = Region(state.threat, x.flatten(1), eps)
        bounds, rows = intervals(state.network, region), margin_rows(label, state.classifier.num_classes).to(x)
        return RelaxationProof(bounds, None, sufficient(state.network, region, bounds, adaptive(bounds), rows))


@dataclass(frozen=True)
class CrownLirpa(Lirpa):
    """CROWN: backward linear bounds for every layer, adaptive lower slopes (Zhang et al., 2018)."""

    search: RadiusSearch = field(default_factory=Secant)

    def bound(self, state: LirpaState, inside: Any, rows: Float[Tensor, "n k classes"]) -> Float[Tensor, "n k"]:
        """Intermediate bounds by CROWN too."""
        return backward(state, inside, rows)

    def witness(
        self, state: LirpaState, x: Float[Tensor, "1 ..."], label: Int[Tensor, " 1"], eps: Float[Tensor, " 1"]
    ) -> RelaxationProof:
        """CROWN's bounds and slopes, by our own engine, which knows ReLU networks alone."""
        region = Region(state.threat, x.flatten(1), eps)
        bounds, rows = layer_bounds(state.network, region), margin_rows(label, state.classifier.num_classes).to(x)
        slopes = adaptive(bounds)
        return RelaxationProof(bounds, slopes, sufficient(state.network, region, bounds, slopes, rows))


@dataclass(frozen=True)
class Forward(Lirpa):
    """Linear bounds propagated forwards through the layers (Xu et al., 2020): cheap where inputs are few."""

    search: RadiusSearch = field(default_factory=Secant)

    def bound(self, state: LirpaState, inside: Any, rows: Float[Tensor, "n k classes"]) -> Float[Tensor, "n k"]:
        """Every layer's bounds as linear functions of the input."""
        return backward(state, inside, rows, "forward")


@dataclass(frozen=True)
class ForwardBackward(Lirpa):
    """Forward linear bounds inside, one backward linear bound at the end (Xu et al., 2020)."""

    search: RadiusSearch = field(default_factory=Secant)

    def bound(self, state: LirpaState, inside: Any, rows: Float[Tensor, "n k classes"]) -> Float[Tensor, "n k"]:
        """Intermediate bounds by forward propagation."""
        return backward(state, inside, rows, "forward+backward")


@dataclass(frozen=True)
class FastLin(Lirpa):
    """Fast-Lin (Weng et al., 2018): CROWN with lower slope = upper slope, as in Wong and Kolter's dual network."""

    search: RadiusSearch = field(default_factory=Secant)

    def bound(self, state: LirpaState, inside: Any, rows: Float[Tensor, "n k classes"]) -> Float[Tensor, "n k"]:
        """CROWN's bound with the same slopes above and below."""
        return backward(state, inside, rows)

    def bound_options(self) -> dict[str, Any]:
        """The option's name in 0.3, and in later releases."""
        return {"relu": "same-slope", "activation_bound_option": "same-slope"}

    def refuse(self, bounded: Any) -> None:
        """Activations for which Fast-Lin is not defined."""
        for node in _nonlinear(bounded):
            if type(node).__name__ != "BoundRelu":
                raise UnsupportedError(f"Fast-Lin's parallel lines are for ReLU, not {type(node).__name__[5:]}")

    def witness(
        self, state: LirpaState, x: Float[Tensor, "1 ..."], label: Int[Tensor, " 1"], eps: Float[Tensor, " 1"]
    ) -> RelaxationProof:
        """Its bounds and slopes, by our own engine."""
        region, rows = Region(state.threat, x.flatten(1), eps), margin_rows(label, state.classifier.num_classes).to(x)
        bounds = layer_bounds(state.network, region, "fast-lin")
        slopes = parallel(bounds)
        return RelaxationProof(bounds, slopes, sufficient(state.network, region, bounds, slopes, rows))


@dataclass(frozen=True)
class AlphaCrownLirpa(Lirpa):
    """alpha-CROWN by auto-LiRPA (Xu et al., 2021): lower slopes optimised for the margins.

    Attributes:
        iterations: steps of Adam on the slopes.
        learning_rate: of those steps.
        layers: whether the slopes below intermediate layers are optimised too; else their bounds stay CROWN's.
    """

    iterations: int = 20
    layers: bool = False
    learning_rate: float = 0.1
    search: RadiusSearch = field(default_factory=Secant)

    linear: ClassVar[bool] = False
    optimisable: ClassVar[frozenset[str]] = frozenset({"BoundRelu", "BoundTanh", "BoundSigmoid"})

    def __post_init__(self) -> None:
        """Refuse what no run could use."""
        if self.iterations < 1:
            raise ConfigError(f"iterations must be at least 1, not {self.iterations}", ("iterations",))
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(
                f"learning_rate must be positive and finite, not {self.learning_rate}", ("learning_rate",)
            )

    def bound_options(self) -> dict[str, Any]:
        """No early stop: it would look at the whole batch, and an input's radius must not depend on the others.

        No sparse slopes either: with given first-layer bounds, 0.3 loses track of which neurons they belong to.
        """
        return {
            "sparse_features_alpha": False,
            "sparse_spec_alpha": False,
            "optimize_bound_args": {
                "iteration": self.iterations,
                "lr_alpha": self.learning_rate,
                "fix_intermediate_layer_bounds": not self.layers,
                "fix_interm_bounds": not self.layers,  # the same, after 0.3
                "early_stop_patience": self.iterations + 1,
            },
        }

    def bound(self, state: LirpaState, inside: Any, rows: Float[Tensor, "n k classes"]) -> Float[Tensor, "n k"]:
        """Every slope in [0, 1] is sound, so the best bound met on the way is, converged or not.

        CROWN fixes the intermediate bounds; then a fresh graph is optimised, because 0.3 keeps slopes of the last
        batch's shape in a used one.
        """
        crown = backward(state, inside, rows)
        layers = _layer_bounds(state.bounded)
        fresh = replace(state, bounded=self.graph(state.module, state.classifier, state.mode))
        if self.layers:
            with torch.enable_grad():
                return torch.maximum(crown, backward(fresh, inside, rows, "CROWN-Optimized"))
        if hasattr(fresh.bounded, "init_slope"):  # 0.3 would bound every layer anew to find a start
            fresh.bounded.init_slope((inside,), c=rows, bound_upper=False, intermediate_layer_bounds=layers)
            fresh.bounded.set_bound_opts({"optimize_bound_args": {"init_alpha": False}})
        with torch.enable_grad():
            return torch.maximum(crown, backward(fresh, inside, rows, "CROWN-Optimized", layers))

    def refuse(self, bounded: Any) -> None:
        """Activations whose slopes auto-LiRPA does not optimise in every release."""
        for node in _nonlinear(bounded):
            if type(node).__name__ not in self.optimisable:
                raise UnsupportedError(
                    f"alpha-CROWN here optimises ReLU, tanh and sigmoid, not {type(node).__name__[5:]}"
                )


def backward(
    state: LirpaState,
    inside: Any,
    rows: Float[Tensor, "n k classes"],
    method: str = "CROWN",
    layers: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> Float[Tensor, "n k"]:
    """auto-LiRPA's lower bounds of `rows` times the logits, by the method of that name.

    Args:
        state: the network.
        inside: the batch with its perturbation set.
        rows: what to bound, one matrix per input.
        method: as auto-LiRPA calls it.
        layers: bounds of intermediate nodes that are known already.
    """
    if not method.startswith("forward"):  # which bounds the first layers over the ball by itself
        layers = {**_first_bounds(state, inside), **(layers or {})}
    with torch.set_grad_enabled(torch.is_grad_enabled() and method == "CROWN-Optimized"):
        known = {_layers_argument(state.bounded): layers or None}
        lower, _ = state.bounded.compute_bounds(x=(inside,), C=rows, method=method, bound_upper=False, **known)
    assert isinstance(lower, Tensor)
    return lower.detach()


def _layers_argument(bounded: Any) -> str:
    """What the release calls the bounds of intermediate nodes."""
    names = inspect.signature(bounded.compute_bounds).parameters
    return "interm_bounds" if "interm_bounds" in names else "intermediate_layer_bounds"


@torch.no_grad()
def _first_bounds(state: LirpaState, inside: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Bounds of the nodes in `state.first`: the ball's, and the box's where the domain cuts it."""
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


def _layer_bounds(bounded: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """The bounds of every activation's input that the last computation used."""
    inputs = [before for node in _nonlinear(bounded) for before in node.inputs if _depends(before)]
    return {node.name: (node.lower.detach(), node.upper.detach()) for node in inputs if node.inputs}


def _questions(logits: Float[Tensor, "n outputs"]) -> Float[Tensor, "n k outputs"]:
    """The rows on which a graph is tried: the margins, or for a single output, it and its negative."""
    if logits.shape[1] > 1:
        return margin_rows(logits.argmax(dim=1), logits.shape[1]).to(logits)
    return torch.tensor([[1.0], [-1.0]], dtype=logits.dtype, device=logits.device).expand(len(logits), 2, 1)


def _spread(logits: Float[Tensor, "n classes"]) -> Float[Tensor, " n"]:
    """How far the logits lie apart: their scale without what all classes share, and an allowance for its rounding."""
    if logits.shape[1] == 1:
        return logits.abs().amax(dim=1)
    apart = (logits - logits.mean(dim=1, keepdim=True)).abs().amax(dim=1)
    return apart + 1e-6 * logits.abs().amax(dim=1)


def _refuse_branches(classifier: Classifier) -> None:
    """Refuse a module whose Python code looks at its input's values: a trace has only one side of a branch."""
    example = torch.zeros(1, *classifier.input_shape, dtype=classifier.dtype, device=classifier.device)
    jit: Any = torch.jit  # without annotations
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            jit.trace(classifier.module, example, check_trace=False)
        except RuntimeError as error:
            raise UnsupportedError(f"{classifier.name} cannot be traced: {error}") from error
    for warning in said:
        # Shape annotations that are checked at run time look at sizes, which stay what they are.
        if issubclass(warning.category, jit.TracerWarning) and Path(warning.filename).parent.name != "jaxtyping":
            reason = str(warning.message).partition(". ")[0]
            raise UnsupportedError(
                f"{classifier.name} cannot be traced for every input ({warning.filename}:{warning.lineno}): {reason}"
            )


def _refuse_known_wrong(bounded: Any) -> None:
    """Refuse layers whose bounds in auto-LiRPA 0.3 are known to be those of another layer."""
    for node in _nonlinear(bounded):
        if type(node).__name__ == "BoundLeakyRelu":
            slope = float(getattr(node, "leaky_alpha", node.alpha))  # its name after 0.3, and in 0.3
            if not 0 <= slope <= 1:
                raise UnsupportedError(f"auto-LiRPA bounds LeakyReLU for slopes in [0, 1], not {slope:g}")
    for node in _dependent(bounded):
        if type(node).__name__ == "BoundAveragePool":
            kernel, stride, padding = (
                [*_flat_numbers(getattr(node, key))] for key in ("kernel_size", "stride", "padding")
            )
            if kernel != stride or any(padding):
                raise UnsupportedError(
                    "auto-LiRPA bounds average pooling only where windows neither overlap nor are padded"
                )


def _flat_numbers(value: Any) -> Iterator[int]:
    yield from value if isinstance(value, list | tuple) else [value, value]


AFFINE = frozenset(
    {
        "BoundAdd",
        "BoundAveragePool",
        "BoundBatchNormalization",
        "BoundConv",
        "BoundFlatten",
        "BoundGlobalAveragePool",
        "BoundIdentity",
        "BoundInput",
        "BoundLinear",
        "BoundNeg",
        "BoundReshape",
        "BoundSqueeze",
        "BoundSub",
        "BoundTranspose",
        "BoundUnsqueeze",
    }
)
"""Nodes of auto-LiRPA's graph that are affine in their inputs; products and quotients are when one side is constant."""


def _depends(node: Any) -> bool:
    """Whether a node's value depends on the network's input; a shape does not."""
    name = type(node).__name__
    return name == "BoundInput" or (name != "BoundShape" and any(_depends(before) for before in node.inputs))


def _is_affine(node: Any) -> bool:
    """Whether a node that depends on the network's input is affine in it."""
    name = type(node).__name__
    inputs = [before for before in node.inputs if _depends(before)]
    if name in ("BoundMul", "BoundDiv"):
        if len(inputs) != 1 or inputs[0] is not node.inputs[0]:
            return False
    elif name not in AFFINE:
        return False
    return all(_is_affine(before) for before in inputs)


def _dependent(bounded: Any) -> list[Any]:
    return [node for node in bounded._modules.values() if _depends(node)]


def _nonlinear(bounded: Any) -> list[Any]:
    return [node for node in _dependent(bounded) if type(node).__name__ not in AFFINE | {"BoundMul", "BoundDiv"}]


def _first_layer(
    bounded: Any, input_shape: tuple[int, ...], threat: ThreatModel
) -> tuple[dict[str, Float[Tensor, "..."]], bool]:
    """The nodes that end the affine part of the graph with their rows' dual norms, and whether the logits are one."""
    affine = _is_affine(bounded.final_node())
    if threat.p == math.inf:  # the box: interval arithmetic and backward bounds start from it directly
        return {}, affine
    names = {
        before.name
        for node in _dependent(bounded)
        if not _is_affine(node)
        for before in node.inputs
        if before.inputs and _depends(before) and _is_affine(before)
    }
    device = next(bounded.parameters()).device
    eye = torch.eye(math.prod(input_shape), dtype=torch.float64, device=device)
    first: dict[str, Tensor] = {}
    with torch.no_grad():
        for name in sorted(names):
            constant = bounded(torch.zeros(1, *input_shape, dtype=torch.float64, device=device), final_node_name=name)
            total = torch.zeros_like(constant[0])
            for part in torch.split(eye, 256):
                moved = bounded(part.view(-1, *input_shape), final_node_name=name)
                columns = (moved - constant).abs() + 1e-13 * (moved.abs() + constant.abs())  # what cancels is rounded
                columns = columns.clamp(min=1e-150)  # whose square is a float
                total = torch.maximum(total, columns.amax(0)) if threat.p == 1 else total + (columns**2).sum(0)
            first[name] = (total if threat.p == 1 else total.sqrt()) * (1 + 1e-9)  # rounding of the differences
    return first, affine


def _perturbation(threat: ThreatModel, x: Float[Tensor, "n ..."], eps: Float[Tensor, " n"]) -> Any:
    low, high = box(threat, x.flatten(1), eps)
    return _ball_class()(threat.p, eps, x.flatten(1), low, high, x.shape)


@dataclass(frozen=True, eq=False)
class _Line:
    """The rows of a linear function that was bounded from below, and how far it falls inside the ball."""

    rows: Float[Tensor, "n k d"]
    change: Float[Tensor, "n k"]


@cache
def _ball_class() -> type[Any]:
    """auto-LiRPA's own perturbation class, with the box for interval arithmetic and the cut ball for linear bounds."""
    auto_lirpa()
    from auto_LiRPA.patches import Patches
    from auto_LiRPA.perturbations import PerturbationLpNorm

    class CutBall(PerturbationLpNorm):  # type: ignore[misc]
        """An Lp ball of its own eps per input, cut by the domain."""

        def __init__(self, p: float, eps: Tensor, x: Tensor, low: Tensor, high: Tensor, shape: torch.Size) -> None:
            super().__init__(norm=math.inf, eps=0.0, x_L=low.view(shape), x_U=high.view(shape))
            self.p, self.radii, self.down, self.up = p, eps, x - low, high - x
            self.last: _Line | None = None

        def concretize(self, x: Tensor, A: Any, sign: int = -1, *args: Any, **kwargs: Any) -> Any:
            """Bound A x over the perturbation set, from below (sign -1) or above; the last from below is remembered."""
            patches = isinstance(A, Patches)
            if A is None or not (isinstance(A, Tensor) or (patches and not A.identity)):
                self.last = None if sign == -1 else self.last
                return super().concretize(x, A, sign, *args, **kwargs)
            if self.p == math.inf and patches:
                if sign == -1:
                    self.last = None  # of features, not of the margins
                return super().concretize(x, A, sign, *args, **kwargs)
            rows = A.to_matrix(x.shape) if patches else A
            rows = rows.reshape(rows.shape[0], rows.shape[1], -1)
            change = support(rows, self.p, self.radii, *((self.down, self.up) if sign == 1 else (self.up, self.down)))
            if sign == -1:
                self.last = _Line(rows.detach(), change.detach())
            bound = (rows @ x.reshape(x.shape[0], -1, 1)).squeeze(-1) + sign * change
            if patches and A.unstable_idx is None:
                bound = bound.view(len(x), A.patches.size(0), A.patches.size(2), A.patches.size(3))
            return bound

    return CutBall


DENSE_LIMIT = 2**20
"""Affine layers whose matrix has at most so many entries are written as dense layers. A judgement: on the 8x8 maps
of the digits an evaluation of CROWN took 13 ms per image with convolutions and 5 ms with dense layers; on MNIST the
matrices are too large."""

_DENSE = (nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.Flatten, nn.Identity)
_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.ELU, nn.Softplus)


@torch.no_grad()
def _dense_layers(module: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
    """The same function with every run of small affine layers written as one dense layer, if it is a plain sequence.

    Exact up to float64 rounding. Layers of other kinds may come first (a normalisation, say); after them only affine
    layers and elementwise activations. Anything else is returned as it is.
    """
    layers = list(_flat(module))
    start = next((i for i in range(len(layers), 0, -1) if type(layers[i - 1]) not in _DENSE + _ELEMENTWISE), 0)
    if not any(isinstance(layer, nn.Conv2d) for layer in layers[start:]):
        return module
    parameter = next(module.parameters())
    point = torch.zeros(1, *input_shape, dtype=parameter.dtype, device=parameter.device)
    for layer in layers[:start]:
        point = layer(point)
    dense: list[nn.Module] = [*layers[:start], nn.Flatten()]
    run: list[nn.Module] = []
    tail: list[nn.Module | None] = [*layers[start:], None]
    for step in tail:
        if step is not None and type(step) in _DENSE:
            run.append(step)
            continue
        if run:
            affine = nn.Sequential(*run)
            zero = torch.zeros_like(point)
            point, run = affine(zero), []
            if zero.numel() * point.numel() > DENSE_LIMIT:
                return module
            eye = torch.eye(zero.numel(), dtype=zero.dtype, device=zero.device).view(-1, *zero.shape[1:])
            linear = nn.Linear(zero.numel(), point.numel(), dtype=zero.dtype, device=zero.device)
            linear.weight.copy_((affine(eye) - point).flatten(1).T)
            linear.bias.copy_(point.flatten())
            dense.append(linear.requires_grad_(False))
        if step is not None:
            dense.append(step)
    return nn.Sequential(*dense).eval()


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of nested sequences, in order."""
    if type(module) is nn.Sequential:
        for layer in module:
            yield from _flat(layer)
    else:
        yield module


def _as_expected(module: nn.Module) -> nn.Module:
    """The same function in the terms that auto-LiRPA 0.3 knows.

    It switches a network with dropout to training mode, where dropout is not the identity; it takes a linear layer
    without bias for a product of matrices; and it wants constants of shape (C, 1, 1), as of a normalisation, with a
    batch axis. Should the last rewriting change what a module computes, the rehearsal of the graph finds out.
    """
    if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d):
        return nn.Identity()
    if isinstance(module, nn.Linear) and module.bias is None:
        module.bias = nn.Parameter(module.weight.new_zeros(module.out_features), requires_grad=False)
    if not type(module).__module__.startswith("torch."):
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.dim() == 3 and buffer.shape[1:] == (1, 1):
                setattr(module, name, buffer[None])
    for name, child in [*module._modules.items()]:  # `named_children` leaves out what came before
        if child is not None:
            setattr(module, name, _as_expected(child))
    return module


@contextmanager
def _precision(dtype: torch.dtype) -> Iterator[None]:
    """auto-LiRPA 0.3 casts the best bound to torch's default precision: float32 would round one in float64 upwards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _quiet() -> Iterator[list[str]]:
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
