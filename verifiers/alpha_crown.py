"""alpha-CROWN (Xu et al., 2021) for ReLU networks: lower slopes optimised for the margins, or for every layer too.

auto-LiRPA's own is `alpha-crown-lirpa`. This one climbs in float32 and evaluates what it found in float64, starts its
radius search at CROWN's radius, and optimises a layer's bounds for themselves before those of the next, so that
nothing of a layer is kept once it is bounded.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.certifier import Bounds, MarginCertifier, tangent
from certbench.classifier import Classifier
from certbench.errors import ConfigError
from certbench.search import RadiusSearch, Secant, Start
from certbench.terms import Guarantee
from certbench.threat import ThreatModel
from certbench.verifiers.alpha_beta import optimise
from certbench.verifiers.network import ReluNetwork
from certbench.verifiers.relaxation import ENTRIES, LayerBounds, NetworkState, Region, crown_radius, layer_bounds
from certbench.verifiers.rounding import bound_errors, evaluation_error


@dataclass(frozen=True)
class AlphaCrown(MarginCertifier[NetworkState]):
    """alpha-CROWN (Xu et al., 2021), for ReLU networks: linear bounds with optimised lower slopes.

    Attributes:
        iterations: steps of Adam on the slopes below the margins.
        layers: steps of Adam on the slopes below each neuron whose sign is open; 0 leaves CROWN's intermediate bounds.
        rounding_safe: whether every bound is widened by an a-priori bound of its own rounding errors and of those that
            the float program itself makes, so that the claim is about what the program computes; see `rounding`.
    """

    iterations: int = 20
    layers: int = 0
    rounding_safe: bool = False
    search: RadiusSearch = field(default_factory=Secant)

    guarantee: ClassVar[Guarantee] = Guarantee.SOUND
    norms: ClassVar[frozenset[float]] = frozenset({1.0, 2.0, math.inf})

    def __post_init__(self) -> None:
        """Refuse what no run could use."""
        if self.iterations < 1:
            raise ConfigError(f"iterations must be at least 1, not {self.iterations}", ("iterations",))
        if self.layers < 0:
            raise ConfigError(f"layers must be at least 0, not {self.layers}", ("layers",))

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> NetworkState:
        """Read the network."""
        return NetworkState.of(classifier, threat)

    def start(self, state: NetworkState, x: Float[Tensor, "n ..."], label: Int[Tensor, " n"]) -> Start:
        """A little above what CROWN's slopes certify."""
        crown = crown_radius(state, x, label, x.new_zeros(len(x)), Secant(relative=1e-2))
        return Start(1.02 * crown, tangent(state, x, label))

    def lower(
        self,
        state: NetworkState,
        x: Float[Tensor, "n ..."],
        rows: Float[Tensor, "n k outputs"],
        eps: Float[Tensor, " n"],
    ) -> Bounds:
        """Every slope in [0, 1] is sound, so the best bound met on the way is, converged or not."""
        region = Region(state.threat, x.flatten(1), eps)
        errors = bound_errors(state.network, region) if self.rounding_safe else None
        bounds = layer_bounds(state.network, region, errors=errors)
        fast = state.network.to(torch.float32)
        if self.layers:
            bounds = optimised_layers(state.network, fast, region, bounds, self.layers, errors)
        found = optimise(state.network, region, bounds, rows, iterations=self.iterations, fast=fast)
        if errors is None:
            return Bounds(found.lower, found.a, found.centre)
        error = errors[-1] + evaluation_error(state.network, region, bounds, state.program)
        lost = (rows.abs() @ error[..., None]).squeeze(-1)
        return Bounds(found.lower - lost, found.a, found.centre - lost)


def optimised_layers(
    network: ReluNetwork,
    fast: ReluNetwork,
    region: Region,
    bounds: LayerBounds,
    iterations: int,
    errors: Sequence[Tensor] | None = None,
) -> LayerBounds:
    """Bounds of all hidden layers, each sharpened neuron by neuron, with the sharpened ones before it."""
    lower, upper = [*bounds.lower], [*bounds.upper]
    for i in range(1, len(network.hidden)):
        known = LayerBounds(tuple(lower), tuple(upper), "alpha-crown")
        neurons = known.unstable(i).any(dim=0).nonzero().squeeze(1)
        neurons_before = sum(part.outputs for part in network.hidden[:i])
        size = max(1, ENTRIES // (16 * len(region) * max(neurons_before, network.inputs)))
        for chosen in torch.split(neurons, size):
            rows = torch.zeros(len(chosen), network.layers[i].outputs, dtype=region.x.dtype, device=region.x.device)
            rows[torch.arange(len(chosen), device=rows.device), chosen] = 1.0
            rows = torch.cat([rows, -rows]).expand(len(region), -1, -1)
            ends = optimise(network, region, known, rows, layer=i, iterations=iterations, fast=fast).lower
            low, high = ends[:, : len(chosen)], -ends[:, len(chosen) :]
            if errors is not None:
                low, high = low - errors[i][:, chosen], high + errors[i][:, chosen]
            lower[i] = lower[i].index_copy(1, chosen, torch.maximum(lower[i][:, chosen], low))
            upper[i] = upper[i].index_copy(1, chosen, torch.minimum(upper[i][:, chosen], high))
    return LayerBounds(tuple(lower), tuple(upper), "alpha-crown")
