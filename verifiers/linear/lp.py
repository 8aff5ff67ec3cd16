r"""The LP relaxation of ReLU networks (Ehlers, 2017): the optimal layer-wise convex relaxation (Salman et al., 2019).

Over bounds l < 0 < u a ReLU $h = \max(z, 0)$ becomes the triangle $h \geq 0$, $h \geq z$, $h \leq u (z - l) / (u - l)$.
For fixed l and u the dual of the resulting linear program is the best choice of lower slopes in CROWN's backward pass:
with multipliers $\lambda$ of $h \geq z$ and $\mu$ of $h \geq 0$ the slope is $\lambda / (\lambda + \mu)$. So HiGHS
(Huangfu and Hall, 2018) only proposes slopes. The bound is what the backward pass proves with them in float64, by weak
duality; the solver's objective is never read.
"""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.core import ball
from certbench.core.certifier import MarginCertifier
from certbench.core.claims import Guarantee
from certbench.core.classifier import Classifier
from certbench.core.margins import Bounds, margin_rows, tangent
from certbench.core.memory import Cost
from certbench.core.search import RadiusSearch, Secant, Start
from certbench.core.threat import ThreatModel
from certbench.errors import UnsupportedError
from certbench.networks.layers import Network
from certbench.verifiers.bounds.backward import backward, layer_bounds
from certbench.verifiers.bounds.costs import relaxed
from certbench.verifiers.bounds.programs import NONZERO, PlanetModel, highs, nonzeros, tightened
from certbench.verifiers.bounds.proof import RelaxationProof, adaptive
from certbench.verifiers.bounds.region import LayerBounds, Linear, Region
from certbench.verifiers.bounds.state import NetworkState, crown_radius


@dataclass(frozen=True)
class LP(MarginCertifier[NetworkState]):
    """The LP relaxation over CROWN's intermediate bounds (Ehlers, 2017; Salman et al., 2019).

    Claims concern the real-arithmetic network with exactly the classifier's parameters. Margins whose bound cannot be
    the smallest keep CROWN's, as do those on which the solver fails.

    Attributes:
        tighten: also bound the neurons of each hidden layer by LPs, two per unstable neuron, first layer to last.
        search: strategy for choosing radii; it starts from CROWN's.
    """

    tighten: bool = False
    search: RadiusSearch = field(default_factory=Secant)

    guarantee: ClassVar[Guarantee] = Guarantee.SOUND
    norms: ClassVar[frozenset[float]] = frozenset({1.0, math.inf})
    one_by_one: ClassVar[bool] = True
    repeatable = False

    def intermediate(self) -> str:
        """Name the method of the intermediate bounds: CROWN, or LPs."""
        return "lp" if self.tighten else "crown"

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> NetworkState:
        """Read the network.

        Raises:
            UnsupportedError: it is no ReLU network; the message names the layer.
            MissingBackendError: highspy is missing.
        """
        highs()
        return self.fitting(NetworkState.of(classifier, threat))

    def cost(self, state: NetworkState) -> Cost:
        """Predict CROWN's bounds, and the program of one input."""
        found = relaxed(state, state.network)
        return replace(found, fixed=found.fixed + NONZERO * nonzeros(state.network), partial=True)

    def start(self, state: NetworkState, x: Float[Tensor, "n ..."], label: Int[Tensor, " n"]) -> Start:
        """Return CROWN's radius, which the LP can only exceed, as far as the search asks."""
        guess = x.new_full((len(x),), torch.nan)
        if isinstance(self.search, Secant):
            guess = crown_radius(state, x, label, x.new_zeros(len(x)), Secant())
        return Start(guess, tangent(state, x, label))

    def lower(
        self,
        state: NetworkState,
        x: Float[Tensor, "n ..."],
        rows: Float[Tensor, "n k outputs"],
        eps: Float[Tensor, " n"],
    ) -> Bounds:
        """Bound each row by the better of CROWN's linear function and of the LP's dual, input by input."""
        region = Region(state.threat, x.flatten(1), eps)
        functions = [self._functions(state.network, region[i : i + 1], rows[i : i + 1]) for i in range(len(x))]
        a, b = torch.cat([f.a for f in functions]), torch.cat([f.b for f in functions])
        return Bounds.linear(a, Linear(a, b).at(region.x), state.threat, region.x, eps)

    def _functions(self, network: Network, region: Region, rows: Float[Tensor, "1 k outputs"]) -> Linear:
        bounds = layer_bounds(network, region)
        if self.tighten:
            bounds = tightened(network, region, bounds)
        return improved(network, region, bounds, rows)

    def witness(
        self, state: NetworkState, x: Float[Tensor, "1 ..."], label: Int[Tensor, " 1"], eps: Float[Tensor, " 1"]
    ) -> RelaxationProof:
        """Return CROWN's bounds, and for each margin the slopes of the LP's dual, or CROWN's where these are better.

        Raises:
            UnsupportedError: hidden layers were bounded by LPs, whose duals are not kept.
        """
        if self.tighten:
            raise UnsupportedError("the duals of the LPs that bounded hidden layers are not kept")
        network, region = state.network, Region(state.threat, x.flatten(1), eps)
        bounds, rows = layer_bounds(network, region), margin_rows(label, state.classifier.num_classes).to(x)
        last, usual = len(network.hidden), [s[None] for s in adaptive(bounds)]
        if not last:
            return RelaxationProof(bounds, [], [])
        chosen, model = [], PlanetModel.of(network, region, bounds, last)
        for k in range(rows.shape[1]):
            ways = [usual, [s[0] for s in model.slopes(rows[0, k]) or model.default_slopes()]]
            found = [backward(network, rows[:, k : k + 1], last, bounds, [s[None] for s in way]) for way in ways]
            low = [float(region.minimum(one.a, one.b)) for one in found]
            chosen.append(ways[int(low[1] > low[0])])
        return RelaxationProof(bounds, adaptive(bounds), [torch.cat(slopes) for slopes in zip(*chosen, strict=True)])


@torch.no_grad()
def improved(network: Network, region: Region, bounds: LayerBounds, rows: Float[Tensor, "1 k outputs"]) -> Linear:
    """Return linear functions below `rows` times the logits over a single ball, by LPs where these can matter.

    The next row solved is always the one whose bound, or whose crossing, is the smallest of all at that time. A
    certificate needs only these two minima over the rows, and they are the same as if every row had been solved.
    """
    last = len(network.hidden)
    linear = backward(network, rows, last, bounds)
    a, b = linear.a.clone(), linear.b.clone()
    low, reach = region.minimum(a, b)[0], ball.crossing(a, Linear(a, b).at(region.x), region.threat, region.x)[0]
    if not any(bool(bounds.unstable(i).any()) for i in range(last)):
        return linear  # no relaxation: the functions are the margins
    model = PlanetModel.of(network, region, bounds, last)
    open_rows = torch.ones(len(low), dtype=torch.bool, device=low.device)
    while True:
        row = next((int(k) for k in (low.argmin(), reach.argmin()) if open_rows[k]), None)
        if row is None:
            return Linear(a, b)
        open_rows[row] = False
        slopes = model.slopes(rows[0, row])
        if slopes is None:
            continue
        found = backward(network, rows[:, row : row + 1], last, bounds, slopes)
        value = region.minimum(found.a, found.b)[0, 0]
        if value > low[row]:  # not if it is NaN
            a[0, row], b[0, row], low[row] = found.a[0, 0], found.b[0, 0], value
            reach[row] = ball.crossing(found.a, found.at(region.x), region.threat, region.x)[0, 0]
