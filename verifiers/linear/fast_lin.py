"""Fast-Lin: linear bounds with parallel lines around ReLUs."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.core.margins import Bounds, margin_rows
from certbench.core.memory import Cost
from certbench.core.ranges import PositiveInt
from certbench.core.search import RadiusSearch, Secant
from certbench.verifiers.bounds.backward import ENTRIES, backward, layer_bounds
from certbench.verifiers.bounds.costs import relaxed
from certbench.verifiers.bounds.proof import RelaxationProof, parallel, sufficient
from certbench.verifiers.bounds.region import Region
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.linear.engines import Engined
from certbench.verifiers.linear.lirpa.graph import Lirpa


@dataclass(frozen=True)
class FastLin(Engined):
    """Fast-Lin (Weng et al., 2018), for ReLU networks: CROWN with lower slope = upper slope.

    Wong and Kolter's dual network (2018) gives the same bounds.

    Attributes:
        entries: largest number of coefficients held at once, 8 bytes each; halved while memory runs out.
    """

    entries: PositiveInt = ENTRIES
    search: RadiusSearch = field(default_factory=Secant)

    relus: ClassVar[bool] = True
    version: ClassVar[int] = 2

    def intermediate(self) -> str:
        """Name the method itself."""
        return "fast-lin"

    def lirpa(self) -> Lirpa:
        """Return CROWN with the option, under its name in 0.3 and its name in later releases."""
        return Lirpa(relus=True, options={"relu": "same-slope", "activation_bound_option": "same-slope"})

    def own_cost(self, state: NetworkState) -> Cost:
        """Predict a backward pass for each neuron."""
        return relaxed(state, state.network, self.entries)

    @torch.no_grad()
    def own(
        self,
        state: NetworkState,
        x: Float[Tensor, "n ..."],
        rows: Float[Tensor, "n k outputs"],
        eps: Float[Tensor, " n"],
    ) -> Bounds:
        """Do one backward pass for each layer, and one for the rows."""
        region = Region(state.threat, x.flatten(1), eps)
        bounds = layer_bounds(state.network, region, "fast-lin", entries=self.entries)
        linear = backward(state.network, rows, len(state.network.hidden), bounds)
        return Bounds.linear(linear.a, linear.at(region.x), state.threat, region.x, eps)

    def witness(
        self, state: NetworkState, x: Float[Tensor, "1 ..."], label: Int[Tensor, " 1"], eps: Float[Tensor, " 1"]
    ) -> RelaxationProof:
        """Return its bounds and slopes, by our own engine."""
        region, rows = Region(state.threat, x.flatten(1), eps), margin_rows(label, state.classifier.num_classes).to(x)
        bounds = layer_bounds(state.network, region, "fast-lin")
        slopes = parallel(bounds)
        return RelaxationProof(bounds, slopes, sufficient(state.network, region, bounds, slopes, rows))
