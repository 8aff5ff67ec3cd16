"""Interval bound propagation, and CROWN-IBP: intervals inside, one backward linear bound at the end."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.core.margins import Bounds, margin_rows
from certbench.core.memory import Cost
from certbench.core.search import RadiusSearch, Secant
from certbench.verifiers.bounds.backward import lower_bounds
from certbench.verifiers.bounds.costs import intervals
from certbench.verifiers.bounds.intervals import ball_intervals, interval_bounds
from certbench.verifiers.bounds.proof import RelaxationProof, adaptive, sufficient
from certbench.verifiers.bounds.region import Region
from certbench.verifiers.bounds.rounding import bound_errors, evaluation_error
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.linear.engines import Engined
from certbench.verifiers.linear.lirpa.graph import Lirpa


@dataclass(frozen=True)
class IBP(Engined):
    """Interval bound propagation (Gowal et al., 2018; Mirman et al., 2018).

    First layers are bounded over the ball itself, and the last layer is merged with the margins.

    Attributes:
        rounding_safe: whether bounds are lowered by an a-priori bound of their own rounding errors and of those that
            the float program itself makes, so that the claim is about what the program computes; for ReLU networks.
    """

    rounding_safe: bool = False
    search: RadiusSearch = field(default_factory=Secant)

    version: ClassVar[int] = 2

    def intermediate(self) -> str:
        """Name intervals as the method."""
        return "ibp"

    def arithmetic(self, state: NetworkState) -> str:
        """Return the float program's arithmetic, if its errors are counted."""
        return str(state.program) if self.rounding_safe else "real"

    def lirpa(self) -> Lirpa:
        """Propagate intervals all the way."""
        return Lirpa("IBP", linear=False)

    def own_cost(self, state: NetworkState) -> Cost:
        """Predict intervals."""
        return intervals(state, state.network)

    @torch.no_grad()
    def own(
        self,
        state: NetworkState,
        x: Float[Tensor, "n ..."],
        rows: Float[Tensor, "n k outputs"],
        eps: Float[Tensor, " n"],
    ) -> Bounds:
        """Propagate intervals all the way; an affine network is bounded exactly."""
        region = Region(state.threat, x.flatten(1), eps)
        bounds, walk = ball_intervals(state.network, region)
        if not state.network.hidden:
            found = lower_bounds(state.network, region, rows, bounds)
        else:
            found = Bounds(walk.end(rows, region))
        return found.less(self._error(state, region, rows)) if self.rounding_safe else found

    def _error(self, state: NetworkState, region: Region, rows: Float[Tensor, "n k outputs"]) -> Float[Tensor, "n k"]:
        """Bound the rounding errors.

        Intervals are sums of the same products as the linear bounds of `bounds.rounding`, without intercepts.
        """
        errors = bound_errors(state.network, region)
        bounds = interval_bounds(state.network, region).widened(errors)
        error = errors[-1] + evaluation_error(state.network, region, bounds, state.program)
        return (rows.abs() @ error[..., None]).squeeze(-1) * (1 + 1e-9)

    def witness(
        self, state: NetworkState, x: Float[Tensor, "1 ..."], label: Int[Tensor, " 1"], eps: Float[Tensor, " 1"]
    ) -> RelaxationProof:
        """Return intervals, by our own engine."""
        del label
        region = Region(state.threat, x.flatten(1), eps)
        return RelaxationProof(ball_intervals(state.network, region)[0], None, None)


@dataclass(frozen=True)
class CrownIBP(Engined):
    """CROWN-IBP: intervals inside, one backward linear bound at the end (Zhang et al., 2020)."""

    search: RadiusSearch = field(default_factory=Secant)

    version: ClassVar[int] = 2

    def intermediate(self) -> str:
        """Name intervals as the method."""
        return "ibp"

    def lirpa(self) -> Lirpa:
        """Bound intermediate layers by intervals."""
        return Lirpa("CROWN-IBP")

    def own_cost(self, state: NetworkState) -> Cost:
        """Predict intervals and one backward pass."""
        return intervals(state, state.network, linear=1)

    @torch.no_grad()
    def own(
        self,
        state: NetworkState,
        x: Float[Tensor, "n ..."],
        rows: Float[Tensor, "n k outputs"],
        eps: Float[Tensor, " n"],
    ) -> Bounds:
        """Bound intermediate layers by intervals."""
        region = Region(state.threat, x.flatten(1), eps)
        return lower_bounds(state.network, region, rows, ball_intervals(state.network, region)[0])

    def witness(
        self, state: NetworkState, x: Float[Tensor, "1 ..."], label: Int[Tensor, " 1"], eps: Float[Tensor, " 1"]
    ) -> RelaxationProof:
        """Return intervals and CROWN's slopes, by our own engine."""
        region = Region(state.threat, x.flatten(1), eps)
        bounds = ball_intervals(state.network, region)[0]
        rows = margin_rows(label, state.classifier.num_classes).to(x)
        return RelaxationProof(bounds, None, sufficient(state.network, region, bounds, adaptive(bounds), rows))
