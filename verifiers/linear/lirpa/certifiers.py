"""Linear relaxation based bounds through auto-LiRPA (Xu et al., 2020): IBP, CROWN and their relatives.

This package adds one eps per input; L1 and L2 balls cut by the input domain; tight first-layer bounds for L1 and L2;
and checks that the converted graph is the network that was asked about. It does not use auto-LiRPA's own handling of L1
and L2, because its interval arithmetic forgets the ball at the first addition (0.3: bounds of width zero).
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.core.margins import margin_rows
from certbench.core.ranges import PositiveFloat, PositiveInt
from certbench.core.search import RadiusSearch, Secant
from certbench.errors import UnsupportedError
from certbench.verifiers.bounds.backward import layer_bounds
from certbench.verifiers.bounds.intervals import interval_bounds, intervals
from certbench.verifiers.bounds.proof import RelaxationProof, adaptive, parallel, sufficient
from certbench.verifiers.bounds.region import Region
from certbench.verifiers.bounds.rounding import bound_errors, evaluation_error
from certbench.verifiers.linear.lirpa.graph import Lirpa, LirpaState, backward
from certbench.verifiers.linear.lirpa.nodes import layer_nodes, nonlinear


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
        """Return the float program's arithmetic, if its errors are counted."""
        return str(state.program) if self.rounding_safe else "real"

    def error(
        self, state: LirpaState, x: Float[Tensor, "n ..."], rows: Float[Tensor, "n k outputs"], eps: Float[Tensor, " n"]
    ) -> Float[Tensor, "n k"]:
        """Bound the rounding errors.

        Intervals are sums of the same products as the linear bounds of `bounds.rounding`, without intercepts.

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
        """Propagate intervals all the way; the last layer is merged with the margins."""
        return backward(state, inside, rows, "IBP")

    def witness(
        self, state: LirpaState, x: Float[Tensor, "1 ..."], label: Int[Tensor, " 1"], eps: Float[Tensor, " 1"]
    ) -> RelaxationProof:
        """Return intervals, by our own engine, which knows ReLU networks alone."""
        del label
        region = Region(state.threat, x.flatten(1), eps)
        return RelaxationProof(intervals(state.network, region), None, None)


@dataclass(frozen=True)
class CrownIBP(Lirpa):
    """CROWN-IBP: intervals inside, one backward linear bound at the end (Zhang et al., 2020)."""

    search: RadiusSearch = field(default_factory=Secant)

    def bound(self, state: LirpaState, inside: Any, rows: Float[Tensor, "n k classes"]) -> Float[Tensor, "n k"]:
        """Bound intermediate layers by intervals."""
        return backward(state, inside, rows, "CROWN-IBP")

    def witness(
        self, state: LirpaState, x: Float[Tensor, "1 ..."], label: Int[Tensor, " 1"], eps: Float[Tensor, " 1"]
    ) -> RelaxationProof:
        """Return intervals and CROWN's slopes, by our own engine, which knows ReLU networks alone."""
        region = Region(state.threat, x.flatten(1), eps)
        bounds, rows = intervals(state.network, region), margin_rows(label, state.classifier.num_classes).to(x)
        return RelaxationProof(bounds, None, sufficient(state.network, region, bounds, adaptive(bounds), rows))


@dataclass(frozen=True)
class CrownLirpa(Lirpa):
    """CROWN: backward linear bounds for every layer, adaptive lower slopes (Zhang et al., 2018)."""

    search: RadiusSearch = field(default_factory=Secant)

    def bound(self, state: LirpaState, inside: Any, rows: Float[Tensor, "n k classes"]) -> Float[Tensor, "n k"]:
        """Bound intermediate layers by CROWN, too."""
        return backward(state, inside, rows)

    def witness(
        self, state: LirpaState, x: Float[Tensor, "1 ..."], label: Int[Tensor, " 1"], eps: Float[Tensor, " 1"]
    ) -> RelaxationProof:
        """Return CROWN's bounds and slopes, by our own engine, which knows ReLU networks alone."""
        region = Region(state.threat, x.flatten(1), eps)
        bounds, rows = layer_bounds(state.network, region), margin_rows(label, state.classifier.num_classes).to(x)
        slopes = adaptive(bounds)
        return RelaxationProof(bounds, slopes, sufficient(state.network, region, bounds, slopes, rows))


@dataclass(frozen=True)
class Forward(Lirpa):
    """Linear bounds propagated forwards through the layers (Xu et al., 2020): cheap where inputs are few."""

    search: RadiusSearch = field(default_factory=Secant)

    def bound(self, state: LirpaState, inside: Any, rows: Float[Tensor, "n k classes"]) -> Float[Tensor, "n k"]:
        """Bound every layer by linear functions of the input."""
        return backward(state, inside, rows, "forward")


@dataclass(frozen=True)
class ForwardBackward(Lirpa):
    """Forward linear bounds inside, one backward linear bound at the end (Xu et al., 2020)."""

    search: RadiusSearch = field(default_factory=Secant)

    def bound(self, state: LirpaState, inside: Any, rows: Float[Tensor, "n k classes"]) -> Float[Tensor, "n k"]:
        """Bound intermediate layers by forward propagation."""
        return backward(state, inside, rows, "forward+backward")


@dataclass(frozen=True)
class FastLin(Lirpa):
    """Fast-Lin (Weng et al., 2018): CROWN with lower slope = upper slope, as in Wong and Kolter's dual network."""

    search: RadiusSearch = field(default_factory=Secant)

    def bound(self, state: LirpaState, inside: Any, rows: Float[Tensor, "n k classes"]) -> Float[Tensor, "n k"]:
        """Return CROWN's bound with the same slopes above and below."""
        return backward(state, inside, rows)

    def bound_options(self) -> dict[str, Any]:
        """Return the option, under its name in 0.3 and its name in later releases."""
        return {"relu": "same-slope", "activation_bound_option": "same-slope"}

    def refuse(self, bounded: Any) -> None:
        """Refuse activations for which Fast-Lin is not defined."""
        for node in nonlinear(bounded):
            if type(node).__name__ != "BoundRelu":
                raise UnsupportedError(f"Fast-Lin's parallel lines are for ReLU, not {type(node).__name__[5:]}")

    def witness(
        self, state: LirpaState, x: Float[Tensor, "1 ..."], label: Int[Tensor, " 1"], eps: Float[Tensor, " 1"]
    ) -> RelaxationProof:
        """Return its bounds and slopes, by our own engine."""
        region, rows = Region(state.threat, x.flatten(1), eps), margin_rows(label, state.classifier.num_classes).to(x)
        bounds = layer_bounds(state.network, region, "fast-lin")
        slopes = parallel(bounds)
        return RelaxationProof(bounds, slopes, sufficient(state.network, region, bounds, slopes, rows))


@dataclass(frozen=True)
class AlphaCrownLirpa(Lirpa):
    """alpha-CROWN by auto-LiRPA (Xu et al., 2021): lower slopes optimised for the margins.

    Attributes:
        iterations: steps of Adam on the slopes.
        learning_rate: learning rate of these steps.
        layers: whether the slopes below intermediate layers are optimised too; else their bounds stay CROWN's.
    """

    iterations: PositiveInt = 20
    layers: bool = False
    learning_rate: PositiveFloat = 0.1
    search: RadiusSearch = field(default_factory=Secant)

    linear: ClassVar[bool] = False
    optimisable: ClassVar[frozenset[str]] = frozenset({"BoundRelu", "BoundTanh", "BoundSigmoid"})
    repeatable = False

    def bound_options(self) -> dict[str, Any]:
        """Return options that switch off early stopping and sparse slopes.

        Early stopping would look at the whole batch, and an input's radius must not depend on the others. With sparse
        slopes and given first-layer bounds, 0.3 loses track of the neurons that the slopes belong to.
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
        """Return the best bound that the optimisation meets: every slope in [0, 1] is sound, converged or not.

        CROWN fixes the intermediate bounds; then a fresh graph is optimised, because 0.3 keeps slopes of the last
        batch's shape in a used one.
        """
        crown = backward(state, inside, rows)
        layers = layer_nodes(state.bounded)
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
        """Refuse activations whose slopes auto-LiRPA does not optimise in every release."""
        for node in nonlinear(bounded):
            if type(node).__name__ not in self.optimisable:
                raise UnsupportedError(
                    f"alpha-CROWN here optimises ReLU, tanh and sigmoid, not {type(node).__name__[5:]}"
                )
