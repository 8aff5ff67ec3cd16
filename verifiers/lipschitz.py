r"""Margins over a global Lipschitz constant per pair of classes (Leino et al., 2021; Tsuzuku et al., 2018).

If $K_{cj}$ bounds the Lipschitz constant of $f_c - f_j$ from the p-norm, class c is predicted wherever
$\|\delta\|_p < \min_{j \neq c} (f_c - f_j)(x) / K_{cj}$. The constants follow the module's graph from the input to
the logits, in the p-norm and in the 2-norm side by side, and each layer starts from whichever gives less.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.parametrize import type_before_parametrizations

from certbench.certificate import Certificate
from certbench.certifier import SLACK, Certifier
from certbench.classifier import Classifier
from certbench.errors import NumericalError, UnsupportedError
from certbench.terms import Guarantee
from certbench.threat import ThreatModel
from certbench.verifiers import norms
from certbench.verifiers.norms import LINEAR, SLOPES, Diagonal, LinearMap, Matrix, dual, lengths, product, total
from certbench.verifiers.tracing import asks_shape, overwrites, trace

CHORDS = 2**24
"""The most entries of a table of chords; larger ones are not followed. A judgement: 128 MB."""


@dataclass(frozen=True, eq=False)
class LipschitzState:
    """The constants of one classifier under one threat model.

    Attributes:
        classifier: in float64.
        threat: what they were made for.
        constants: `constants[c, j]` bounds the Lipschitz constant of f_c - f_j.
        layers: what re-checks them: of each linear layer, norms by exponents, "2->2" from 2-norm to 2-norm.
    """

    classifier: Classifier
    threat: ThreatModel
    constants: Float[Tensor, "classes classes"]
    layers: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class LipschitzMargin(Certifier[LipschitzState]):
    """Margins over a global Lipschitz constant per pair of classes (Leino et al., 2021; Tsuzuku et al., 2018).

    Claims concern the real-arithmetic network with exactly the classifier's parameters, in all of R^d. Constants
    are proved in float64, margins have the rounding allowance `SLACK`. Layers without a bound are refused.
    """

    guarantee: ClassVar[Guarantee] = Guarantee.SOUND
    norms: ClassVar[frozenset[float]] = frozenset({1.0, 2.0, math.inf})

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> LipschitzState:
        """Trace the module and bound its constants.

        Raises:
            UnsupportedError: the module cannot be traced, or a layer has no bound here.
            NumericalError: a parameter is NaN or infinite.
        """
        exact = classifier.double()
        constants, layers = constants_of(replace(exact, module=classifier.double().module.cpu()), threat.p)
        return LipschitzState(exact, threat, constants.to(exact.device), layers)

    def certify(self, state: LipschitzState, x: Float[Tensor, "n ..."], seeds: Sequence[int]) -> Certificate:
        """The smallest ratio of margin and constant over the other classes."""
        del seeds
        logits, scale = state.classifier.logits_and_scale(x)
        label = logits.argmax(dim=1)
        own = functional.one_hot(label, state.classifier.num_classes).bool()
        margin = logits.gather(1, label[:, None]) - logits - SLACK * scale[:, None]
        constants = state.constants[label]
        radius = torch.where(margin > 0, margin / constants, 0.0)  # NaN never certifies
        radius = torch.where(own, torch.inf, radius).amin(dim=1)
        evidence = [{"constants": row, "layers": state.layers} for row in constants.tolist()]
        return Certificate.of(label, radius, evidence=evidence)


@torch.no_grad()
def constants_of(
    classifier: Classifier, p: float
) -> tuple[Float[Tensor, "classes classes"], dict[str, dict[str, float]]]:
    """Lipschitz constants of all differences of two logits from the p-norm, and the norms of the linear layers.

    Raises:
        UnsupportedError: the module cannot be traced, or a layer has no bound here.
        NumericalError: a parameter is NaN or infinite.
    """
    graph = trace(classifier)
    x = torch.rand(2, *classifier.input_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    propagation = _Propagation(graph, p)
    try:
        traced = propagation.run(x.clone())
    except (UnsupportedError, NumericalError):
        raise
    except Exception as error:  # whatever a layer raises on features of a shape that its rule did not expect
        raise UnsupportedError(f"{classifier.name}: {str(error).partition(chr(10))[0]}") from error
    if not _same_logits(traced, classifier(x)):
        raise UnsupportedError(
            f"the trace of {classifier.name} computes other logits than its module; does it add in place to a tensor "
            "that is used again?"
        )
    return propagation.pairs(classifier.num_classes), propagation.layers


def _same_logits(traced: Any, logits: Float[Tensor, "n classes"]) -> bool:
    """Whether a trace computes a module's logits; measured without what all classes share, which hides differences."""
    if not isinstance(traced, Tensor) or traced.shape != logits.shape:
        return False
    if not bool(logits.isfinite().all()):
        return torch.equal(traced.isfinite(), logits.isfinite())
    spread = (logits - logits.mean(dim=1, keepdim=True)).abs().max()
    return bool((traced - logits).abs().max() <= 1e-9 * spread + 1e-13 * logits.abs().max())


@dataclass(frozen=True, eq=False)
class _Movement:
    """How far a value of the graph can move; it is the linear `map` (None: the identity) of a base.

    Attributes:
        constants: r -> Lipschitz constant of the base from the input's p-norm to the r-norm.
        chords: if every input i moves by t_i, the base moves entry by entry by at most the sum of t_i `chords[i]`:
            moduli of weights multiplied along each path. None where the table would be too large.
        map: the linear part of the layers since, composed.
        names: of these layers.
    """

    constants: Mapping[float, float]
    chords: Float[Tensor, "d ..."] | None
    map: LinearMap | None = None
    names: tuple[str, ...] = ()


class _Propagation(fx.Interpreter):
    """Runs the graph on a batch of two, for the shapes, and moves the bounds along."""

    def __init__(self, graph: fx.GraphModule, p: float) -> None:
        """Start before the first node."""
        super().__init__(graph)
        self.p = p
        self.movements: dict[fx.Node, _Movement] = {}
        self.aliases: set[fx.Node] = set()
        self.layers: dict[str, dict[str, float]] = {}
        self.logits: _Movement | None = None

    def run_node(self, n: fx.Node) -> Any:
        """The value of a node; how it moves with the input, if it does, goes into `movements`."""
        result = super().run_node(n)
        moves = any(source in self.movements for source in n.all_input_nodes)
        if n.op == "placeholder" and not self.movements:
            self.movements[n] = self.start(result[0])
        elif n.op == "output":
            self.logits = self.movements.get(n.args[0]) if isinstance(n.args[0], fx.Node) else None
        elif moves and not asks_shape(n):
            try:
                movement = self.follow(n, result)
            except UnsupportedError as error:
                raise UnsupportedError(f"{self.describe(n)} {error}") from error
            if movement is None:
                raise UnsupportedError(f"{self.describe(n)} has no bound here")
            self.movements[n] = movement
        return result

    def describe(self, n: fx.Node) -> str:
        """A node, as an error names it."""
        if n.op == "call_module":
            return f"{n.target} ({type(self.fetch_attr(str(n.target))).__name__})"
        return n.target if isinstance(n.target, str) else getattr(n.target, "__name__", repr(n.target))

    def start(self, x: Float[Tensor, "..."]) -> _Movement:
        """The input itself."""
        d = x.numel()
        chords = torch.eye(d, dtype=torch.float64).reshape(d, *x.shape) if d * d <= CHORDS else None
        return _Movement({r: norms.identity(self.p, r, d) for r in (self.p, 2.0)}, chords)

    def follow(self, n: fx.Node, result: Any) -> _Movement | None:
        """The rule of one node, or None where there is none."""
        args, options = self.fetch_args_kwargs_from_env(n)
        if not isinstance(result, Tensor) or result.dtype != torch.float64 or result.dim() < 2 or len(result) != 2:
            return None  # the rules know features of two inputs
        shape = tuple(result.shape[1:])
        layer: Any = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        if layer is None and n.target in _ARITHMETIC and len(args) == 2 and not options:
            return self.combine(n, args, shape)
        moving = [arg for arg in (*n.args, *n.kwargs.values()) if isinstance(arg, fx.Node) and arg in self.movements]
        if moving != list(n.args[:1]):
            return None
        before, size = self.movements[moving[0]], tuple(args[0].shape[1:])
        if n.target is functional.linear:
            return self.apply(before, norms.linear(options.get("weight", *args[1:2])), n.name)
        if layer is None and n.target in _VIEWS:
            layer = nn.Identity()
        elif layer is None and n.target in _CALLS:
            layer = _CALLS[n.target](*args[1:], **options)
        kind = type_before_parametrizations(layer)
        if kind in _UNMOVED:
            self.aliases.add(n)
            return self.view(before, shape)
        if kind in LINEAR:
            return self.apply(
                before, LINEAR[kind](layer, size, shape), str(n.target) if n.op == "call_module" else n.name
            )
        if getattr(layer, "inplace", False):
            self.overwrite(n)
        if kind in SLOPES:
            slope = SLOPES[kind](layer)
            return self.stretch(before, lambda r: slope, lambda chords: slope * chords)
        if kind is nn.MaxPool2d and not layer.return_indices:
            count = norms.windows(*(norms.pair(value) for value in (layer.kernel_size, layer.stride, layer.dilation)))
            return self.stretch(before, lambda r: norms.identity(math.inf, r, count), layer)
        return None

    def combine(self, n: fx.Node, args: tuple[Any, ...], shape: tuple[int, ...]) -> _Movement | None:
        """Sum, difference, product or quotient, with a constant or of two values that move."""
        operation = _ARITHMETIC[n.target]
        terms = [self.movements.get(arg) if isinstance(arg, fx.Node) else None for arg in n.args]
        if any(term and tuple(arg.shape[1:]) != shape for term, arg in zip(terms, args, strict=True)):
            raise UnsupportedError("repeats a value to fit another shape")
        if n.target in _OVERWRITING:
            self.overwrite(n)
        first, second = terms
        if first and second and operation in "+-":
            a, b = self.settle(first), self.settle(second)
            chords = None if a.chords is None or b.chords is None else norms.outward(a.chords + b.chords, 1)
            return _Movement({r: total(a.constants[r], b.constants[r]) for r in a.constants}, chords)
        moving = first or second
        if moving is None or operation in "+-":
            return moving
        if second and (first or operation == "/"):
            raise UnsupportedError("has no bound here where both factors, or the divisor, move with the input")
        scale = torch.as_tensor(args[1] if first else args[0], dtype=torch.float64).expand(2, *shape)
        if not torch.equal(scale[0], scale[1]):
            raise UnsupportedError("scales the inputs of a batch differently")
        diagonal = Diagonal(scale[0]) if operation == "*" else Diagonal(1 / scale[0], roundings=1)
        return self.apply(moving, diagonal, n.name)

    def overwrite(self, n: fx.Node) -> None:
        """Refuse to change a value in place that something else reads, too."""
        self.aliases.add(n)
        if overwrites(n, self.aliases):
            raise UnsupportedError("changes in place a value that is used again")

    def view(self, before: _Movement, shape: tuple[int, ...]) -> _Movement:
        """The same numbers in another shape."""
        if isinstance(before.map, Matrix):
            return replace(before, map=replace(before.map, shape=shape))
        if isinstance(before.map, Diagonal):
            return replace(before, map=replace(before.map, scale=before.map.scale.reshape(shape)))
        settled = self.settle(before)
        chords = None if settled.chords is None else settled.chords.reshape(-1, *shape)
        return replace(settled, chords=chords)

    def apply(self, before: _Movement, layer: LinearMap, name: str) -> _Movement:
        """A linear layer, composed with those before it where that is cheap."""
        joint = layer if before.map is None else norms.compose(layer, before.map)
        if joint is None:
            before, joint = self.settle(before), layer
        return replace(before, map=joint, names=(*before.names, name))

    def settle(self, before: _Movement) -> _Movement:
        """Make the value itself the base: pay for the norm of its map."""
        if before.map is None:
            return before
        paid = {(s, r): before.map.norm(s, r) for s in before.constants for r in before.constants}
        name = "+".join(before.names)
        while name in self.layers:
            name += " again"
        self.layers[name] = {f"{s:g}->{r:g}": bound for (s, r), bound in paid.items()}
        constants = {
            r: min(product(before.constants[s], paid[s, r]) for s in before.constants) for r in before.constants
        }
        if before.chords is None or len(before.chords) * math.prod(before.map.shape) > CHORDS:
            return _Movement(constants, None)
        chords = before.map.absolute(before.chords)
        return _Movement({r: min(bound, self.reach(chords, r)) for r, bound in constants.items()}, chords)

    def stretch(
        self, before: _Movement, factor: Callable[[float], float], pool: Callable[[Tensor], Tensor]
    ) -> _Movement:
        """A nonlinear layer that is `factor(r)`-Lipschitz in the r-norm; `pool` is what it does to chords."""
        settled = self.settle(before)
        chords = None if settled.chords is None else norms.outward(pool(settled.chords), 1)
        return _Movement({r: product(bound, factor(r)) for r, bound in settled.constants.items()}, chords)

    def reach(self, chords: Float[Tensor, "d ..."], r: float) -> float:
        """The norm of a table of chords from p to r (for p = r = 2 infinite, since the layers' are smaller)."""
        table = chords.flatten(1)
        if self.p == 1:
            return norms.longest(table, r)
        return norms.longest(lengths(table.T, 1.0)[None], r) if self.p == math.inf else math.inf

    def pairs(self, classes: int) -> Float[Tensor, "classes classes"]:
        r"""Constants of f_c - f_j: the least of $L_r \|w_c - w_j\|_{r^*}$ and $\||w_c - w_j| C\|_{p^*}$.

        L_r and C are constants and chords of the base, w the rows of the last affine layers, or of the identity.
        """
        if self.logits is None:
            raise UnsupportedError("the logits do not depend on the input, or come with other values")
        last = self.logits
        if not isinstance(last.map, Matrix):
            last = self.apply(self.settle(last), norms.linear(torch.eye(classes, dtype=torch.float64)), "logits")
        assert isinstance(last.map, Matrix)
        chords = None if last.chords is None else last.chords.flatten(1).T
        if chords is not None and classes**2 * chords.numel() > CHORDS**1.5:
            chords = None
        weight, error = last.map.weight, last.map.error
        constants = torch.zeros(classes, classes, dtype=torch.float64)
        for c in range(classes):
            rows = (weight[c] - weight).abs() + (error[c] + error)
            bounds = [norms.products(lengths(rows, dual(r)), bound) for r, bound in last.constants.items()]
            if chords is not None:
                bounds.append(lengths(norms.outward(rows @ chords, rows.shape[1] + 3), dual(self.p)))
            constants[c] = torch.stack(bounds).amin(dim=0)
        if bool(constants.isnan().any()):
            raise NumericalError("a weight is NaN or infinite")
        return constants.fill_diagonal_(0.0)


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
    del p, inplace
    if training:
        raise UnsupportedError("drops at random, with training=True; pass self.training")
    return nn.Identity()


_VIEWS: frozenset[Any] = frozenset(
    (torch.flatten, torch.reshape, torch.squeeze, "flatten", "view", "reshape", "squeeze", "contiguous")
)
_UNMOVED = frozenset((nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout))
_OVERWRITING = frozenset((operator.iadd, operator.isub, operator.imul, operator.itruediv))
_ARITHMETIC: Mapping[Any, str] = {
    target: sign
    for sign, targets in {
        "+": (operator.add, operator.iadd, torch.add, "add"),
        "-": (operator.sub, operator.isub, torch.sub, "sub"),
        "*": (operator.mul, operator.imul, torch.mul, "mul"),
        "/": (operator.truediv, operator.itruediv, torch.div, "div"),
    }.items()
    for target in targets
}
_CALLS: Mapping[Any, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "relu_": partial(nn.ReLU, inplace=True),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    torch.relu: nn.ReLU,
    torch.tanh: nn.Tanh,
    torch.sigmoid: nn.Sigmoid,
    functional.relu: nn.ReLU,
    functional.relu6: nn.ReLU6,
    functional.hardtanh: nn.Hardtanh,
    functional.leaky_relu: nn.LeakyReLU,
    functional.elu: nn.ELU,
    functional.selu: nn.SELU,
    functional.softplus: nn.Softplus,
    functional.tanh: nn.Tanh,
    functional.sigmoid: nn.Sigmoid,
    functional.gelu: nn.GELU,
    functional.silu: nn.SiLU,
    functional.mish: nn.Mish,
    functional.max_pool2d: nn.MaxPool2d,
    functional.avg_pool2d: nn.AvgPool2d,
    functional.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    functional.dropout: _dropout,
}
"""The module of each function that takes the same options in the same order."""
