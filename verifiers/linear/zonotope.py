r"""Zonotopes, forwards: DeepZ (Singh et al., 2018) and the hybrid zonotopes of DiffAI (Mirman et al., 2018).

The values of a layer are written as

    centre + sum_j delta_j inputs_j + sum_s e_s errors_s + box * e',

delta the perturbation of the input itself (in its ball, not in a box around it), every e_s and every entry of e' free
in [-1, 1]. Affine layers act on delta and e exactly, and branches of a residual network share these symbols, so that
their sums are exact too. A ReLU on [l, u] with l < 0 < u becomes, for any slope in [0, 1],

    slope * z + [0, max(-slope * l, (1 - slope) * u)].

DeepZ takes slope = u / (u - l), where the interval is narrowest, and gives it a symbol of its own, which later layers
follow: that is the bound of Fast-Lin and of Wong and Kolter's dual, found in the other direction (Salman et al., 2019).
Hybrid zonotopes add it to a box around the values. Later layers know only the width of that box: the bound is looser,
but there are no new symbols.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.core import ball
from certbench.core.certifier import MarginCertifier
from certbench.core.claims import Guarantee
from certbench.core.classifier import Classifier
from certbench.core.margins import Bounds
from certbench.core.memory import Cost
from certbench.core.ranges import one_of
from certbench.core.search import RadiusSearch, Secant
from certbench.core.threat import ThreatModel
from certbench.networks.layers import Network
from certbench.networks.maps import Map
from certbench.verifiers.bounds.backward import ENTRIES
from certbench.verifiers.bounds.costs import BASE, BYTES, EVALUATIONS, Sizes, pace, rows_of, tangents
from certbench.verifiers.bounds.region import Region
from certbench.verifiers.bounds.state import NetworkState

Slope = Callable[[Tensor, Tensor], Tensor]
"""A function that gives the slope of an unstable ReLU from its bounds l and u."""

SLOPES: dict[str, Slope] = {
    "switch": lambda low, high: (high >= -low).to(low),
    "box": lambda low, high: torch.zeros_like(low),
    "diagonal": lambda low, high: torch.ones_like(low),
    "least": lambda low, high: high / (high - low),
}


@dataclass(frozen=True)
class DeepZ(MarginCertifier[NetworkState]):
    """DeepZ: zonotopes with a symbol per unstable ReLU (Singh et al., 2018); in exact arithmetic, not in floats.

    Layer bounds are those of the zonotope alone. Sharpening them by intervals would not always sharpen the margin, as
    the slope of an unstable ReLU falls with its upper bound.
    """

    search: RadiusSearch = field(default_factory=Secant)

    guarantee: ClassVar[Guarantee] = Guarantee.SOUND
    norms: ClassVar[frozenset[float]] = frozenset({1.0, 2.0, math.inf})

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> NetworkState:
        """Read the network."""
        return self.fitting(NetworkState.of(classifier, threat))

    def cost(self, state: NetworkState) -> Cost:
        """Predict the zonotopes of all layers, with a symbol for each neuron."""
        return zonotopes(state, symbols=True)

    def lower(
        self,
        state: NetworkState,
        x: Float[Tensor, "n ..."],
        rows: Float[Tensor, "n k outputs"],
        eps: Float[Tensor, " n"],
    ) -> Bounds:
        """Subtract the symbols' reach from the centre; the bound is linear in the input's own coordinates."""
        return lower(state, x, rows, eps, SLOPES["least"], symbols=True)


@dataclass(frozen=True)
class HybridZonotope(MarginCertifier[NetworkState]):
    """DiffAI's hybrid zonotopes: the errors of unstable ReLUs go into a box (Mirman et al., 2018).

    Attributes:
        transformer: rule for unstable ReLUs. "box" forgets what they depend on, "diagonal" keeps slope 1, "switch"
            takes the narrower of these two, "least" has DeepZ's slope u / (u - l).
    """

    transformer: Annotated[str, one_of(*SLOPES)] = "switch"
    search: RadiusSearch = field(default_factory=Secant)

    guarantee: ClassVar[Guarantee] = Guarantee.SOUND
    norms: ClassVar[frozenset[float]] = frozenset({1.0, 2.0, math.inf})

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> NetworkState:
        """Read the network."""
        return self.fitting(NetworkState.of(classifier, threat))

    def cost(self, state: NetworkState) -> Cost:
        """Predict the zonotopes of all layers, without symbols."""
        return zonotopes(state, symbols=False)

    def lower(
        self,
        state: NetworkState,
        x: Float[Tensor, "n ..."],
        rows: Float[Tensor, "n k outputs"],
        eps: Float[Tensor, " n"],
    ) -> Bounds:
        """Subtract the box's reach from the centre; the bound is linear in the input's own coordinates."""
        return lower(state, x, rows, eps, SLOPES[self.transformer], symbols=False)


@dataclass(frozen=True, eq=False)
class Zonotope:
    """A batch of n zonotopes of m values each.

    Attributes:
        centre: the values where all symbols are 0.
        inputs: coefficients of the d coordinates of the perturbation; a single table where all inputs share it.
        errors: coefficients of the symbols of earlier ReLUs; symbol s is the same one wherever it occurs, and each
            input numbers its own.
        box: amount that each value can move besides, independent of the others.
    """

    centre: Float[Tensor, "n m"]
    inputs: Float[Tensor, "_ d m"]
    errors: Float[Tensor, "n e m"]
    box: Float[Tensor, "n m"]

    @staticmethod
    def around(x: Float[Tensor, "n d"]) -> "Zonotope":
        """Return the zonotopes of the inputs themselves."""
        eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        return Zonotope(x, eye[None], x.new_zeros(len(x), 0, x.shape[1]), torch.zeros_like(x))

    def ends(self, region: Region) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
        """Return bounds of the smallest and the largest values over the balls."""
        threat, error = region.threat, self.errors.abs().sum(dim=1) + self.box
        if threat.domain is None:
            gain = region.eps[:, None] * ball.length(self.inputs.movedim(1, -1), threat.q)
            loss = gain
        else:
            down, up = ball.rooms(threat, region.x, region.eps)
            rows = self.inputs.transpose(1, 2).expand(len(region), -1, -1)
            gain = ball.support(rows, threat.p, region.eps, down, up)
            loss = ball.support(rows, threat.p, region.eps, up, down)
        return self.centre - loss - error, self.centre + gain + error

    def relu(self, low: Float[Tensor, "n m"], high: Float[Tensor, "n m"], choose: Slope, symbols: bool) -> "Zonotope":
        """Return the image, given bounds of the values; errors of unstable ReLUs become symbols, or go into the box."""
        unstable = (low < 0) & (high > 0)
        slope = torch.where(unstable, choose(low, high), (low >= 0).to(low))
        slope = torch.where(low.isnan() | high.isnan(), torch.nan, slope)
        half = torch.where(unstable, torch.maximum(-slope * low, (1 - slope) * high) / 2, 0.0)
        errors, box = slope[:, None] * self.errors, slope * self.box
        if symbols:
            errors = torch.cat([errors, _new_symbols(half)], dim=1)
        else:
            box = box + half
        return Zonotope(slope * self.centre + half, slope[:, None] * self.inputs, errors, box)


GENERATORS = 6
"""Number of copies of a layer's generators while it is computed: sum, terms, and behind its ReLU. Counted."""

UNFOLDED = 2**22
"""Largest number of entries that convolutions may hold beside their results: 32 MB."""


def zonotopes(state: NetworkState, symbols: bool) -> Cost:
    """Predict zonotopes: generators of the input, and with `symbols` one for each neuron."""
    network, rows = state.network, rows_of(state)
    last = _last_uses(network)
    count, held, work, most = network.inputs, [network.inputs**2], 0.0, 0.0
    for i, layer in enumerate(network.hidden):
        work += count * sum(part.products for part in layer.maps.values())
        most = max(
            most,
            count * GENERATORS * layer.outputs
            + sum(size for source, size in enumerate(held) if last.get(source, -1) >= i),
        )
        count += symbols * layer.outputs
        held.append(count * layer.outputs)
    sizes = Sizes.of(network)
    return Cost(
        fixed=BASE + BYTES * (UNFOLDED + most * _together(network, symbols)),
        each=BYTES * tangents(sizes, rows),
        work=EVALUATIONS * (work + rows * sizes.below[-1]),
        pace=lambda: pace(network, state.threat),
        device=state.classifier.device,
    )


def _together(network: Network, symbols: bool) -> int:
    """Return the number of inputs that are bounded at once, as if every ReLU were unstable."""
    sizes = [layer.outputs for layer in network.hidden]
    return max(1, ENTRIES // ((network.inputs + symbols * sum(sizes)) * max([network.inputs, *sizes])))


def _last_uses(network: Network) -> dict[int, int]:
    """Return the last layer that reads each source."""
    return {source: i for i, layer in enumerate(network.layers) for source in layer.maps}


def propagate(network: Network, region: Region, choose: Slope, symbols: bool) -> dict[int, Zonotope]:
    """Return the zonotopes that the last layer reads, by source: 0 is the input, i > 0 comes behind the i-th ReLU."""
    sources, last = {0: Zonotope.around(region.x)}, _last_uses(network)
    count = 0  # of all symbols so far
    for i, (layer, moduli) in enumerate(zip(network.hidden, network.absolute, strict=False)):
        centre = layer.bias.expand(len(region), -1)
        inputs = region.x.new_zeros(1, network.inputs, layer.outputs)
        errors = region.x.new_zeros(len(region), count, layer.outputs)
        box = torch.zeros_like(centre)
        for source, part in layer.maps.items():
            h = sources[source]
            centre = centre + part.forward(h.centre)
            inputs = inputs + _each(part, h.inputs)
            errors[:, : h.errors.shape[1]] += _each(part, h.errors)
            box = box + moduli[source].forward(h.box)
        z = Zonotope(centre, inputs, errors, box)
        sources = {source: h for source, h in sources.items() if last.get(source, -1) > i}
        behind = z.relu(*z.ends(region), choose, symbols)
        sources[i + 1], count = behind, behind.errors.shape[1]
    return sources


@torch.no_grad()
def lower(
    state: NetworkState,
    x: Float[Tensor, "n ..."],
    rows: Float[Tensor, "n k outputs"],
    eps: Float[Tensor, " n"],
    choose: Slope,
    symbols: bool,
) -> Bounds:
    """Bound `rows` times the logits, as many inputs at a time as memory allows if every ReLU were unstable."""
    network, region = state.network, Region(state.threat, x.flatten(1), eps)
    size = _together(network, symbols)
    parts = [
        _below(network, region[i : i + size], rows[i : i + size], choose, symbols)
        for i in range(0, max(len(x), 1), size)
    ]
    coefficients, centre = (torch.cat(column) for column in zip(*parts, strict=True))
    return Bounds.linear(coefficients, centre, state.threat, region.x, eps)


def _below(
    network: Network, region: Region, rows: Float[Tensor, "n k outputs"], choose: Slope, symbols: bool
) -> tuple[Float[Tensor, "n k d"], Float[Tensor, "n k"]]:
    """Return linear functions below `rows` times the logits: coefficients of the perturbation, and value at the input.

    The rows are merged with the last layer first, which makes the box narrower.
    """
    sources, last = propagate(network, region, choose, symbols), network.layers[-1]
    n, k = rows.shape[:2]
    centre = rows @ last.bias
    inputs = rows.new_zeros(n, k, network.inputs)
    errors = rows.new_zeros(n, k, max(h.errors.shape[1] for h in sources.values()))
    for source, part in last.maps.items():
        h = sources[source]
        pulled = part.transpose(rows.flatten(0, 1)).view(n, k, part.inputs)
        centre = centre + ((h.centre[:, None] * pulled) - h.box[:, None] * pulled.abs()).sum(dim=-1)
        inputs = inputs + pulled @ h.inputs.transpose(1, 2)
        errors[:, :, : h.errors.shape[1]] += pulled @ h.errors.transpose(1, 2)
    return inputs, centre - errors.abs().sum(dim=-1)


def _each(part: Map, generators: Float[Tensor, "n s before"]) -> Float[Tensor, "n s after"]:
    """Apply a map to every generator."""
    n, s = generators.shape[:2]
    if n * s == 0:
        return generators.new_zeros(n, s, part.outputs)
    some = max(1, UNFOLDED // part.unfolded) if part.unfolded else n * s
    made = [part.forward(chunk) for chunk in torch.split(generators.flatten(0, 1), some)]
    return (made[0] if len(made) == 1 else torch.cat(made)).view(n, s, part.outputs)


def _new_symbols(half: Float[Tensor, "n m"]) -> Float[Tensor, "n e m"]:
    """Add a symbol per entry that is not 0; inputs that have fewer of them get symbols that move nothing."""
    wanted = half != 0
    count = int(wanted.sum(dim=1).amax()) if len(half) else 0
    at = wanted.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count, None]
    symbols = half.new_zeros(len(half), count, half.shape[1])
    return symbols.scatter(2, at, half[..., None].gather(1, at))
