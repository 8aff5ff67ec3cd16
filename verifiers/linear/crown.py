"""CROWN (Zhang et al., 2018) and alpha-CROWN (Xu et al., 2021).

On our own engine slopes are optimised in float32, and the result is evaluated in float64. alpha-CROWN's radius search
starts at CROWN's radius. A layer's bounds are optimised before those of the next layer, so nothing of a layer is kept
once it is bounded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.core.margins import Bounds, margin_rows, tangent
from certbench.core.memory import Cost
from certbench.core.ranges import NonNegativeInt, PositiveFloat, PositiveInt
from certbench.core.search import RadiusSearch, Secant, Start
from certbench.errors import UnsupportedError
from certbench.verifiers.bounds.backward import ENTRIES, layer_bounds, lower_bounds, raised
from certbench.verifiers.bounds.costs import optimised, relaxed
from certbench.verifiers.bounds.optimise import optimise, optimised_bounds
from certbench.verifiers.bounds.proof import RelaxationProof, adaptive, sufficient
from certbench.verifiers.bounds.region import LayerBounds, Region
from certbench.verifiers.bounds.rounding import bound_errors, evaluation_error
from certbench.verifiers.bounds.state import NetworkState, crown_radius
from certbench.verifiers.linear.engines import Engined
from certbench.verifiers.linear.lirpa.graph import Lirpa, LirpaState
from certbench.verifiers.linear.lirpa.optimised import Optimised


@dataclass(frozen=True)
class Crown(Engined):
    """CROWN (Zhang et al., 2018): linear bounds of every layer, adaptive lower slopes.

    Intermediate bounds are CROWN's or intervals, whichever are better.

    Attributes:
        rounding_safe: whether every bound is widened by an a-priori bound of its own rounding errors and of those that
            the float program itself makes, so that the claim is about what the program computes; see `bounds.rounding`.
        entries: largest number of coefficients held at once, 8 bytes each; halved while memory runs out.
    """

    rounding_safe: bool = False
    entries: PositiveInt = ENTRIES
    search: RadiusSearch = field(default_factory=Secant)

    version: ClassVar[int] = 2

    def intermediate(self) -> str:
        """Name CROWN as the method."""
        return "crown"

    def arithmetic(self, state: NetworkState) -> str:
        """Return the float program's arithmetic, if its errors are counted."""
        return str(state.program) if self.rounding_safe else "real"

    def lirpa(self) -> Lirpa:
        """Bound intermediate layers by CROWN and by intervals, too."""
        return Lirpa(sharpened=True)

    def own_cost(self, state: NetworkState) -> Cost:
        """Predict a backward pass for each neuron."""
        return relaxed(state, state.network, self.entries)

    def own(
        self,
        state: NetworkState,
        x: Float[Tensor, "n ..."],
        rows: Float[Tensor, "n k outputs"],
        eps: Float[Tensor, " n"],
    ) -> Bounds:
        """Do one backward pass for each layer, and one for the rows."""
        region = Region(state.threat, x.flatten(1), eps)
        errors = bound_errors(state.network, region) if self.rounding_safe else None
        bounds = layer_bounds(state.network, region, entries=self.entries, errors=errors)
        found = lower_bounds(state.network, region, rows, bounds)
        return found if errors is None else _safe(state, region, bounds, rows, errors, found)

    def witness(
        self, state: NetworkState, x: Float[Tensor, "1 ..."], label: Int[Tensor, " 1"], eps: Float[Tensor, " 1"]
    ) -> RelaxationProof:
        """Return CROWN's bounds and slopes."""
        region = Region(state.threat, x.flatten(1), eps)
        bounds = layer_bounds(state.network, region, entries=self.entries)
        rows, slopes = margin_rows(label, state.classifier.num_classes).to(x), adaptive(bounds)
        return RelaxationProof(bounds, slopes, sufficient(state.network, region, bounds, slopes, rows))


@dataclass(frozen=True)
class AlphaCrown(Engined):
    """alpha-CROWN (Xu et al., 2021): linear bounds with optimised slopes.

    Attributes:
        iterations: steps of Adam on the slopes below the margins.
        layers: steps of Adam on the slopes below each neuron whose sign is open; 0 leaves CROWN's intermediate bounds.
            auto-LiRPA optimises them together with the slopes below the margins, whatever the number is.
        learning_rate: learning rate of these steps, for auto-LiRPA.
        rounding_safe: whether every bound is widened by an a-priori bound of its own rounding errors and of those that
            the float program itself makes, so that the claim is about what the program computes; see `bounds.rounding`.
        entries: largest number of coefficients held at once, 8 bytes each; halved while memory runs out.
    """

    iterations: PositiveInt = 20
    layers: NonNegativeInt = 0
    learning_rate: PositiveFloat = 0.1
    rounding_safe: bool = False
    entries: PositiveInt = ENTRIES
    search: RadiusSearch = field(default_factory=Secant)

    version: ClassVar[int] = 2
    repeatable = False

    def intermediate(self) -> str:
        """Name CROWN or the optimisation as the method."""
        return "alpha-crown" if self.layers else "crown"

    def arithmetic(self, state: NetworkState) -> str:
        """Return the float program's arithmetic, if its errors are counted."""
        return str(state.program) if self.rounding_safe else "real"

    def lirpa(self) -> Lirpa:
        """Optimise by auto-LiRPA's own steps."""
        return Optimised.of(self.iterations, self.learning_rate, self.layers > 0)

    def start(self, state: NetworkState, x: Float[Tensor, "n ..."], label: Int[Tensor, " n"]) -> Start:
        """Start a little above the radius that CROWN's slopes certify, on our own engine."""
        if isinstance(state, LirpaState):
            return super().start(state, x, label)
        crown = crown_radius(state, x, label, x.new_zeros(len(x)), Secant(relative=1e-2))
        return Start(1.02 * crown, tangent(state, x, label))

    def own_cost(self, state: NetworkState) -> Cost:
        """Predict CROWN and the steps of the optimisation."""
        return optimised(state, state.network, self.iterations, self.layers, self.entries)

    def own(
        self,
        state: NetworkState,
        x: Float[Tensor, "n ..."],
        rows: Float[Tensor, "n k outputs"],
        eps: Float[Tensor, " n"],
    ) -> Bounds:
        """Return the best bound that the optimisation meets: every slope in [0, 1] is sound, converged or not."""
        region = Region(state.threat, x.flatten(1), eps)
        errors = bound_errors(state.network, region) if self.rounding_safe else None
        bounds = layer_bounds(state.network, region, entries=self.entries, errors=errors)
        fast = state.network.to(torch.float32)
        if self.layers:
            bounds = optimised_bounds(
                state.network,
                region,
                bounds,
                iterations=self.layers,
                fast=fast,
                entries=self.entries,
                errors=errors,
            )
        found = optimise(state.network, region, bounds, rows, iterations=self.iterations, fast=fast)
        result = raised(state.network, region, rows, bounds, Bounds(found.lower, found.a, found.centre))
        return result if errors is None else _safe(state, region, bounds, rows, errors, result)

    def witness(
        self, state: NetworkState, x: Float[Tensor, "1 ..."], label: Int[Tensor, " 1"], eps: Float[Tensor, " 1"]
    ) -> RelaxationProof:
        """Return CROWN's bounds, and the optimised slopes of each margin.

        Raises:
            UnsupportedError: the slopes below hidden layers were optimised too, and are not kept.
        """
        if self.layers:
            raise UnsupportedError("alpha-CROWN does not keep the slopes that it optimised below hidden layers")
        region = Region(state.threat, x.flatten(1), eps)
        bounds = layer_bounds(state.network, region, entries=self.entries)
        rows = margin_rows(label, state.classifier.num_classes).to(x)
        alpha = optimise(state.network, region, bounds, rows, iterations=self.iterations).choice.alpha[0]
        sizes = [low.shape[1] for low in bounds.lower]
        return RelaxationProof(bounds, adaptive(bounds), torch.split(alpha.clamp(0, 1), sizes, dim=1) if sizes else ())


def _safe(
    state: NetworkState,
    region: Region,
    bounds: LayerBounds,
    rows: Float[Tensor, "n k outputs"],
    errors: Sequence[Tensor],
    found: Bounds,
) -> Bounds:
    """Bound what the float program computes, from bounds as they were computed."""
    error = errors[-1] + evaluation_error(state.network, region, bounds, state.program)
    return found.less((rows.abs() @ error[..., None]).squeeze(-1))
