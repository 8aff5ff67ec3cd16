"""Constants carried through a network, layer by layer: they bound how far outputs move when inputs do."""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.parametrize import type_before_parametrizations

from certbench.core.classifier import Classifier
from certbench.errors import NumericalError, UnsupportedError
from certbench.networks.maps import Dense, Scale
from certbench.networks.tracing import asks_shape, overwrites, refuse_hidden_writes, trace
from certbench.numerics.rounding import (
    LARGEST,
    TOO_LARGE,
    dual,
    lengths,
    longest,
    outward,
    product,
    products,
    total,
)
from certbench.verifiers.lipschitz.folding import compose, linear
from certbench.verifiers.lipschitz.layer_rules import CALLS, LINEAR, SLOPES, WINDOWS
from certbench.verifiers.lipschitz.operator_norms import Normed, identity_norm, norm, row_norm, spread

CHORDS = 2**24
"""Largest number of entries of a table of chords; larger tables are not followed. A judgement: 128 MB."""


@torch.no_grad()
def constants_of(
    classifier: Classifier, p: float, rule: str = "best"
) -> tuple[Float[Tensor, "rows rows"], dict[str, dict[str, float]]]:
    """Return Lipschitz constants from the p-norm, as in `LipschitzState`, and the norms of the linear layers.

    Raises:
        UnsupportedError: the module cannot be traced, or a layer has no bound here.
        NumericalError: a parameter is NaN or infinite.
    """
    propagation = propagated(classifier, p)
    return propagation.pairs(classifier.num_classes, rule), propagation.norms


@torch.no_grad()
def feature_constants(features: Classifier, p: float) -> dict[float, float]:
    """Return Lipschitz constants of a map to flat features, from the p-norm to the 1-norm, the 2-norm and the inf-norm.

    Raises:
        UnsupportedError: the module cannot be traced, or a layer has no bound here.
        NumericalError: a parameter is NaN or infinite.
    """
    propagation = propagated(features, p)
    return {r: propagation.constant(r, features.num_classes) for r in (1.0, 2.0, math.inf)}


def propagated(classifier: Classifier, p: float) -> "_Propagation":
    """Carry constants through a classifier, in float64 on the CPU."""
    graph = trace(classifier)
    x = torch.rand(2, *classifier.input_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    propagation = _Propagation(graph, p)
    try:
        traced = propagation.run(x.clone())
    except (UnsupportedError, NumericalError):
        raise
    except Exception as error:  # a layer may raise any error for an unexpected shape
        raise UnsupportedError(f"{classifier.name}: {str(error).partition(chr(10))[0]}") from error
    if not same_logits(traced, classifier.module(x.clone())):
        raise UnsupportedError(
            f"the trace of {classifier.name} computes other logits than its module; does it add in place to a tensor "
            "that is used again?"
        )
    refuse_hidden_writes(classifier, graph, x)
    return propagation


def same_logits(traced: Any, logits: Float[Tensor, "n classes"]) -> bool:
    """Say whether a trace computes a module's logits.

    They are compared without what all classes share, as that hides differences.
    """
    if not isinstance(traced, Tensor) or traced.shape != logits.shape:
        return False
    if not bool(logits.isfinite().all()):
        return torch.equal(traced.isfinite(), logits.isfinite())
    spread = (logits - logits.mean(dim=1, keepdim=True)).abs().max()
    return bool((traced - logits).abs().max() <= 1e-9 * spread + 1e-13 * logits.abs().max())


@dataclass(frozen=True, eq=False)
class _Movement:
    """A bound of how far a value of the graph can move. The value is the linear `map` (None: the identity) of a base.

    Attributes:
        constants: r -> Lipschitz constant of the base from the input's p-norm to the r-norm.
        chords: if every input i moves by t_i, the base moves entry by entry by at most the sum of t_i `chords[i]`:
            moduli of weights multiplied along each path. None where the table would be too large.
        map: the linear part of the layers since the base, composed.
        names: names of these layers.
    """

    constants: Mapping[float, float]
    chords: Float[Tensor, "d ..."] | None
    map: Normed | None = None
    names: tuple[str, ...] = ()


class _Propagation(fx.Interpreter):
    """An interpreter that runs the graph on a batch of two, for the shapes, and moves the bounds along."""

    def __init__(self, graph: fx.GraphModule, p: float) -> None:
        """Start before the first node."""
        super().__init__(graph)
        self.p = p
        self.movements: dict[fx.Node, _Movement] = {}
        self.aliases: set[fx.Node] = set()
        self.norms: dict[str, dict[str, float]] = {}
        self.logits: _Movement | None = None
        self.gain = 1.0

    def run_node(self, n: fx.Node) -> Any:
        """Compute the value of a node; if it moves with the input, its movement goes into `movements`."""
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
        """Name a node for an error message."""
        if n.op == "call_module":
            return f"{n.target} ({type(self.fetch_attr(str(n.target))).__name__})"
        return n.target if isinstance(n.target, str) else getattr(n.target, "__name__", repr(n.target))

    def start(self, x: Float[Tensor, "..."]) -> _Movement:
        """Make the movement of the input itself."""
        d = x.numel()
        chords = torch.eye(d, dtype=torch.float64).reshape(d, *x.shape) if d * d <= CHORDS else None
        return _Movement({r: identity_norm(self.p, r, d) for r in (self.p, 2.0)}, chords)

    def follow(self, n: fx.Node, result: Any) -> _Movement | None:
        """Apply the rule of one node; return None where there is none."""
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
            if len(size) != 1:
                raise UnsupportedError(f"is applied along the last axis of features of shape {size}; flatten first")
            return self.apply(before, linear(options.get("weight", *args[1:2])), n.name)
        if layer is None and n.target in _VIEWS:
            layer = nn.Identity()
        elif layer is None and n.target in CALLS:
            layer = CALLS[n.target](*args[1:], **options)
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
        if kind in WINDOWS:
            count = WINDOWS[kind](layer, size, shape)
            return self.stretch(before, lambda r: identity_norm(math.inf, r, count), layer)
        return None

    def combine(self, n: fx.Node, args: tuple[Any, ...], shape: tuple[int, ...]) -> _Movement | None:
        """Move a sum, difference, product or quotient, with a constant or of two values that move."""
        operation = _ARITHMETIC[n.target]
        terms = [self.movements.get(arg) if isinstance(arg, fx.Node) else None for arg in n.args]
        if any(term and tuple(arg.shape[1:]) != shape for term, arg in zip(terms, args, strict=True)):
            raise UnsupportedError("repeats a value to fit another shape")
        if n.target in _OVERWRITING:
            self.overwrite(n)
        first, second = terms
        if first and second and operation in "+-":
            a, b = self.settle(first), self.settle(second)
            chords = None if a.chords is None or b.chords is None else outward(a.chords + b.chords, 1)
            return _Movement({r: total(a.constants[r], b.constants[r]) for r in a.constants}, chords)
        moving = first or second
        if moving is None or operation in "+-":
            return moving
        if second and (first or operation == "/"):
            raise UnsupportedError("has no bound here where both factors, or the divisor, move with the input")
        scale = torch.as_tensor(args[1] if first else args[0], dtype=torch.float64).expand(2, *shape)
        if not torch.equal(scale[0], scale[1]):
            raise UnsupportedError("scales the inputs of a batch differently")
        diagonal = Scale(scale[0]) if operation == "*" else Scale(1 / scale[0], entry_roundings=1)
        return self.apply(moving, diagonal, n.name)

    def overwrite(self, n: fx.Node) -> None:
        """Refuse to change a value in place that something else reads, too."""
        self.aliases.add(n)
        if overwrites(n, self.aliases):
            raise UnsupportedError("changes in place a value that is used again")

    def view(self, before: _Movement, shape: tuple[int, ...]) -> _Movement:
        """Give the same numbers another shape."""
        if isinstance(before.map, Dense):
            return replace(before, map=replace(before.map, features=shape))
        if isinstance(before.map, Scale):
            return replace(before, map=replace(before.map, diagonal=before.map.diagonal.reshape(shape)))
        settled = self.settle(before)
        chords = None if settled.chords is None else settled.chords.reshape(-1, *shape)
        return replace(settled, chords=chords)

    def apply(self, before: _Movement, layer: Normed, name: str) -> _Movement:
        """Apply a linear layer, composed with those before it if that is cheap."""
        self.gain *= max(1.0, row_norm(layer, 1.0))
        if not self.gain < LARGEST:
            raise UnsupportedError(TOO_LARGE)
        joint = layer if before.map is None else compose(layer, before.map)
        if joint is None:
            before, joint = self.settle(before), layer
        return replace(before, map=joint, names=(*before.names, name))

    def settle(self, before: _Movement) -> _Movement:
        """Make the value itself the base: pay for the norm of its map."""
        if before.map is None:
            return before
        paid = {(s, r): norm(before.map, s, r) for s in before.constants for r in before.constants}
        name = "+".join(before.names)
        while name in self.norms:
            name += " again"
        self.norms[name] = {f"{s:g}->{r:g}": bound for (s, r), bound in paid.items()}
        constants = {
            r: min(product(before.constants[s], paid[s, r]) for s in before.constants) for r in before.constants
        }
        if before.chords is None or len(before.chords) * before.map.outputs > CHORDS:
            return _Movement(constants, None)
        chords = spread(before.map, before.chords)
        return _Movement({r: min(bound, self.reach(chords, r)) for r, bound in constants.items()}, chords)

    def stretch(
        self, before: _Movement, factor: Callable[[float], float], pool: Callable[[Tensor], Tensor]
    ) -> _Movement:
        """Apply a nonlinear layer that is `factor(r)`-Lipschitz in the r-norm; `pool` is its effect on chords."""
        settled = self.settle(before)
        chords = None if settled.chords is None else outward(pool(settled.chords), 1)
        return _Movement({r: product(bound, factor(r)) for r, bound in settled.constants.items()}, chords)

    def reach(self, chords: Float[Tensor, "d ..."], r: float) -> float:
        """Return the norm of a table of chords from p to r (for p = r = 2 infinite, since the layers' are smaller)."""
        table = chords.flatten(1)
        if self.p == 1:
            return longest(table, r)
        return longest(lengths(table.T, 1.0)[None], r) if self.p == math.inf else math.inf

    def constant(self, r: float, size: int) -> float:
        """Return the constant of all outputs together, `size` of them, from p to r."""
        if self.logits is None:
            raise UnsupportedError("the features do not depend on the input, or come with other values")
        if self.logits.map is None:
            return min(product(bound, identity_norm(s, r, size)) for s, bound in self.logits.constants.items())
        return min(product(bound, norm(self.logits.map, s, r)) for s, bound in self.logits.constants.items())

    def pairs(self, classes: int, rule: str) -> Float[Tensor, "rows rows"]:
        r"""Return constants of f_c - f_j by a rule of `LayerwiseLipschitz`; the last index stands for the function 0.

        With constants $L_r$ and chords C of the base, and w the rows of the last affine layers (or of the identity):
        $L_r \|w_c - w_j\|_{r^*}$ and $\||w_c - w_j| C\|_{p^*}$.
        """
        if self.logits is None:
            raise UnsupportedError("the logits do not depend on the input, or come with other values")
        last = self.logits
        if not isinstance(last.map, Dense):
            last = self.apply(self.settle(last), linear(torch.eye(classes, dtype=torch.float64)), "logits")
        assert isinstance(last.map, Dense)
        padded = functional.pad(last.map.weight, (0, 0, 0, 1)), functional.pad(last.map.error, (0, 0, 0, 1))
        constants = torch.zeros(classes + 1, classes + 1, dtype=torch.float64)
        if rule in ("tsuzuku", "centred", "naive"):
            alone, whole = self.whole(last, last.map, rule)
            constants[:], constants[:-1, -1], constants[-1, :-1] = whole, alone, alone
        else:
            chords = None if last.chords is None or rule == "pairwise" else last.chords.flatten(1).T
            if chords is not None and (classes + 1) ** 2 * chords.numel() > CHORDS**1.5:
                chords = None
            if chords is None and rule == "absolute":
                raise UnsupportedError("the moduli along all paths are too many for the rule 'absolute'")
            for c in range(classes + 1):
                rows = (padded[0][c] - padded[0]).abs() + (padded[1][c] + padded[1])
                bounds = [products(lengths(rows, dual(r)), bound) for r, bound in last.constants.items()]
                if chords is not None:
                    by_paths = lengths(outward(rows @ chords, rows.shape[1] + 3), dual(self.p))
                    bounds = [by_paths] if rule == "absolute" else [*bounds, by_paths]
                constants[c] = torch.stack(bounds).amin(dim=0)
        if bool(constants.isnan().any()):
            raise NumericalError("a weight is NaN or infinite")
        return torch.maximum(constants, constants.T).fill_diagonal_(0.0)

    def whole(self, last: "_Movement", layer: Dense, rule: str) -> tuple[float, float]:
        """Return constants of each logit and of each difference of two, from one constant for all logits together."""

        def constant(of: Dense, r: float) -> float:
            return min(product(bound, norm(of, s, r)) for s, bound in last.constants.items())

        if rule == "naive":
            return constant(layer, math.inf), 2 * constant(layer, math.inf)
        alone = constant(layer, 2.0)
        if rule == "centred":
            size = len(layer.weight)
            apart = torch.full((size, size), -1.0 / size, dtype=torch.float64)
            magnitude = -apart
            apart.diagonal().add_(1.0)
            magnitude.diagonal().add_(1.0)
            centred = compose(Dense(apart, magnitude, layer.shape, 2), layer)
            assert isinstance(centred, Dense)
            return alone, product(constant(centred, 2.0), math.nextafter(math.sqrt(2), 2))
        return alone, product(alone, math.nextafter(math.sqrt(2), 2))


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
