r"""Linear relaxations of ReLU networks, backwards: one engine for Fast-Lin, CROWN, alpha-CROWN, LP duals and splits.

On [l, u] with l < 0 < u, $\alpha z \leq \max(z, 0) \leq u (z - l) / (u - l)$ for every $\alpha \in [0, 1]$. Put into
$c \cdot f$ layer by layer, they give a linear function of the input that lies below it (Weng et al., 2018; Zhang et
al., 2018). For fixed l and u the best of all $\alpha$ is the LP relaxation's dual (Salman et al., 2019), so that any
approximate dual solution of a solver becomes a bound here, in float64, whatever the solver's accuracy. A split
$s z \geq 0$ enters with a multiplier $\beta \geq 0$ (Wang et al., 2021).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.core import ball
from certbench.core.certification import out_of_memory
from certbench.core.certifier import Bounds, MarginState, clean_margin, margin_rows, tangent
from certbench.core.classifier import Classifier
from certbench.core.search import Evaluation, RadiusSearch, Start
from certbench.core.threat import ThreatModel
from certbench.errors import NumericalError
from certbench.networks.relu import ReluNetwork

ENTRIES = 2**20
"""The most entries of the coefficients that are held at once for one layer of features: 8 MB in float64, which was
faster than 2**22 and 2**24 on networks of digits and MNIST, for a processor's cache."""

SHARED = 8
"""How many batches of intermediate bounds a network remembers."""


@dataclass(frozen=True, eq=False)
class Region:
    """Balls around n flat inputs, each of its own radius, cut by the threat model's domain."""

    threat: ThreatModel
    x: Float[Tensor, "n d"]
    eps: Float[Tensor, " n"]

    def __len__(self) -> int:
        """Number of inputs."""
        return len(self.x)

    def __getitem__(self, index: Tensor | slice) -> "Region":
        """Some of them."""
        return replace(self, x=self.x[index], eps=self.eps[index])

    def minimum(self, a: Float[Tensor, "n k d"], b: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """A lower bound of a . x + b over each ball."""
        if self.threat.p == math.inf:
            low, high = self.box()
            centre, half = (low + high) / 2, (high - low) / 2
            return (a @ centre[..., None]).squeeze(-1) - (a.abs() @ half[..., None]).squeeze(-1) + b
        return (a @ self.x[..., None]).squeeze(-1) + b - ball.fall(a, self.threat, self.x, self.eps)

    def box(self) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """The smallest boxes around the balls."""
        return ball.box(self.threat, self.x, self.eps)


@dataclass(frozen=True, eq=False)
class LayerBounds:
    """Bounds of every pre-activation of the hidden layers, one row per input.

    Attributes:
        lower: by hidden layer, in order.
        upper: likewise.
        method: how they came about; certificates state it.
    """

    lower: tuple[Float[Tensor, "n _"], ...]
    upper: tuple[Float[Tensor, "n _"], ...]
    method: str

    def __getitem__(self, index: Tensor | slice) -> "LayerBounds":
        """The bounds of some of the inputs."""
        return LayerBounds(tuple(low[index] for low in self.lower), tuple(up[index] for up in self.upper), self.method)

    def unstable(self, layer: int) -> Tensor:
        """Which neurons of a hidden layer may lie on either side of zero: (n, size)."""
        return (self.lower[layer] < 0) & (self.upper[layer] > 0)

    def upto(self, layer: int) -> "LayerBounds":
        """Those of the hidden layers before `layer` alone."""
        return LayerBounds(self.lower[:layer], self.upper[:layer], self.method)

    def widened(self, errors: Sequence[Tensor] | None) -> "LayerBounds":
        """Bounds that hold in real arithmetic too, if `errors` says by layer what rounding may have done to them."""
        if errors is None:
            return self
        lower = tuple(low - error for low, error in zip(self.lower, errors, strict=False))
        return LayerBounds(
            lower, tuple(high + error for high, error in zip(self.upper, errors, strict=False)), self.method
        )

    def tightened(self, other: "LayerBounds", method: str) -> "LayerBounds":
        """The better of two bounds, neuron by neuron; both are sound, so this is."""
        return LayerBounds(
            tuple(torch.maximum(a, b) for a, b in zip(self.lower, other.lower, strict=True)),
            tuple(torch.minimum(a, b) for a, b in zip(self.upper, other.upper, strict=True)),
            method,
        )


@dataclass(frozen=True, eq=False)
class Linear:
    """Linear functions of the flat input, k per input of a batch: a . x + b."""

    a: Float[Tensor, "n k d"]
    b: Float[Tensor, "n k"]

    def at(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Their values."""
        return (self.a @ x[..., None]).squeeze(-1) + self.b


def backward(
    network: ReluNetwork,
    rows: Float[Tensor, "n k outputs"],
    layer: int,
    bounds: LayerBounds,
    slopes: Sequence[Tensor] | None = None,
    multipliers: Sequence[Tensor] | None = None,
) -> Linear:
    """Linear functions of the input below `rows` times what `layer` gives, wherever `bounds` hold.

    Args:
        network: of which `layers[layer]` is bounded; the last one gives the logits.
        rows: what to bound; no rows of zeros are needed.
        layer: its index in `network.layers`.
        bounds: of the hidden layers before it.
        slopes: by hidden layer, of the lines below unstable ReLUs, broadcast to (n, k, size); clamped into [0, 1].
            None: CROWN's adaptive choice, 1 where u > -l, else 0.
        multipliers: by hidden layer, broadcast to (n, k, size); added to the coefficients of the pre-activations. Sound
            where a split says so: a term m z is at most 0 wherever m and z have opposite signs or one is 0.
    """
    coefficients: dict[int, Tensor] = {}
    at: int = layer
    z = rows[:1] if rows.stride(0) == 0 else rows  # the same for all inputs, until their bounds come in
    constant = torch.zeros(rows.shape[:2], dtype=rows.dtype, device=rows.device)
    while True:
        part = network.layers[at]
        constant = constant + z @ part.bias
        for source, step in part.maps.items():
            pulled = step.transpose(z.flatten(0, 1)).view(*z.shape[:2], step.inputs)
            coefficients[source] = coefficients[source] + pulled if source in coefficients else pulled
        at = max(source for source in coefficients)
        if at == 0:
            return Linear(coefficients[0].expand(len(rows), -1, -1), constant)
        h, at = coefficients.pop(at), at - 1
        low, high = bounds.lower[at][:, None], bounds.upper[at][:, None]
        above, offset = upper_line(low, high)
        below = lower_slope(low, high, None if slopes is None else slopes[at])
        up = h.clamp(max=0)
        z = torch.addcmul((h - up) * below, up, above)
        constant = constant + (up @ offset.transpose(1, 2)).squeeze(-1)
        if multipliers is not None:
            z = z + multipliers[at]


def upper_line(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and offset of the line above a ReLU on [low, high]; NaN bounds give NaN."""
    unstable = (low < 0) & (high > 0)
    slope = torch.where(unstable, high / (high - low), (low >= 0).to(low.dtype))
    slope = torch.where(low.isnan() | high.isnan(), torch.nan, slope)
    return slope, torch.where(unstable, -low * slope, 0.0)


def lower_slope(low: Tensor, high: Tensor, chosen: Tensor | None) -> Tensor:
    """Slope of the line below a ReLU on [low, high]: what it must be where the sign is known, else as chosen."""
    free = (high > -low).to(low.dtype) if chosen is None else chosen.clamp(0, 1)
    return torch.where((low < 0) & (high > 0), free, (low >= 0).to(low.dtype))


def interval_bounds(network: ReluNetwork, region: Region) -> LayerBounds:
    """Interval arithmetic (IBP), from the box around each ball."""
    low, high = region.box()
    centres, radii = [(low + high) / 2], [(high - low) / 2]
    lower, upper = [], []
    for i in range(len(network.hidden)):
        centre = network.layers[i].bias.expand(len(region), -1)
        radius = torch.zeros_like(centre)
        for source, part in network.layers[i].maps.items():
            centre = centre + part.forward(centres[source])
            radius = radius + network.absolute[i][source].forward(radii[source])
        lower.append(centre - radius)
        upper.append(centre + radius)
        below, above = lower[-1].clamp(min=0), upper[-1].clamp(min=0)
        below, above = (torch.where(lower[-1].isnan(), torch.nan, end) for end in (below, above))
        centres.append((below + above) / 2)
        radii.append((above - below) / 2)
    return LayerBounds(tuple(lower), tuple(upper), "ibp")


def layer_bounds(
    network: ReluNetwork,
    region: Region,
    method: str = "crown",
    known: LayerBounds | None = None,
    entries: int = ENTRIES,
    errors: Sequence[Tensor] | None = None,
) -> LayerBounds:
    """Bounds of all hidden layers over the balls, layer by layer; those asked for last are remembered by the network.

    Args:
        network: the network.
        region: the balls.
        method: "ibp", "crown" (adaptive lower slopes) or "fast-lin" (lower slopes u / (u - l), as Wong and Kolter).
        known: sound bounds that the result is intersected with: those of a larger ball, say.
        entries: the most coefficients held at once; halved while memory runs out.
        errors: by layer, what rounding may do to a bound; each is widened by it before it is used.

    Raises:
        NumericalError: a bound is NaN.
    """
    if known is not None or errors is not None:
        return _layer_bounds(network, region, method, known, entries, errors)
    ends = (tensor.cpu().contiguous().numpy().tobytes() for tensor in (region.x, region.eps))
    key = (method, region.threat, *ends)
    if key not in network.shared:
        network.shared[key] = _layer_bounds(network, region, method, None, entries, None)
        while len(network.shared) > SHARED:
            network.shared.popitem(last=False)
    found: LayerBounds = network.shared[key]
    return found


@torch.no_grad()
def _layer_bounds(
    network: ReluNetwork,
    region: Region,
    method: str,
    known: LayerBounds | None,
    entries: int,
    errors: Sequence[Tensor] | None,
) -> LayerBounds:
    start = interval_bounds(network, region).widened(errors)
    if known is not None:
        start = start.tightened(known, method)
    if method == "ibp":
        return start
    lower, upper = [*start.lower], [*start.upper]
    for i, layer in enumerate(network.hidden):
        if region.threat.p == math.inf and list(layer.maps) == [0]:
            continue  # intervals are exact over a box
        so_far = LayerBounds(tuple(lower[:i]), tuple(upper[:i]), method)
        low, high = _both_ends(network, region, i, lower[i], upper[i], so_far, method == "fast-lin", entries)
        if errors is not None:
            low, high = low - errors[i], high + errors[i]
        # What intervals leave stable stays so, and its bounds are not used: no need to sharpen them.
        open_ = (lower[i] < 0) & (upper[i] > 0)
        lower[i] = torch.where(open_, torch.maximum(lower[i], low), lower[i])
        upper[i] = torch.where(open_, torch.minimum(upper[i], high), upper[i])
    if not all(bool((~end.isnan()).all()) for end in (*lower, *upper)):
        raise NumericalError("a layer's bounds are NaN")
    return LayerBounds(tuple(lower), tuple(upper), method)


def _both_ends(
    network: ReluNetwork,
    region: Region,
    layer: int,
    lower: Float[Tensor, "n size"],
    upper: Float[Tensor, "n size"],
    bounds: LayerBounds,
    parallel: bool,
    entries: int,
) -> tuple[Float[Tensor, "n size"], Float[Tensor, "n size"]]:
    """Bounds of the neurons of a hidden layer whose sign is open, as many at a time as memory allows."""
    widest = max([network.inputs, *(part.outputs for part in network.layers[: layer + 1])])
    counts = ((lower < 0) & (upper > 0)).sum(dim=1)
    order = ((lower < 0) & (upper > 0)).to(torch.int8).argsort(dim=1, descending=True, stable=True)
    low, high = torch.full_like(lower, -torch.inf), torch.full_like(upper, torch.inf)
    rest = [(0, len(region), 0, int(counts.max()) if len(region) else 0)]  # inputs and places in their orders
    while rest:
        first, last, at, end = rest.pop()
        if first == last or at >= end:
            continue
        size = entries // (2 * widest)
        if (last - first) * (end - at) > max(size, 1) and (last - first > 1 or end - at > 1):
            rest += _halves(first, last, at, end, counts)
            continue
        part, neurons = slice(first, last), order[first:last, at:end]
        try:
            made = _ends(network, region[part], layer, neurons, bounds[part], parallel)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error) or (last - first == 1 and end - at == 1):
                raise
            rest += _halves(first, last, at, end, counts)
            continue
        low[part] = low[part].scatter(1, neurons, made[0])
        high[part] = high[part].scatter(1, neurons, made[1])
    return low, high


def _halves(first: int, last: int, at: int, end: int, counts: Tensor) -> list[tuple[int, int, int, int]]:
    """A piece of work in two: fewer inputs, or of a single one fewer neurons."""
    if last - first == 1:
        middle = (at + end) // 2
        return [(first, last, at, middle), (first, last, middle, end)]
    middle = (first + last) // 2
    pieces = [(first, middle), (middle, last)]
    return [(a, b, at, min(end, int(counts[a:b].max()))) for a, b in pieces]


def _ends(
    network: ReluNetwork, region: Region, layer: int, neurons: Tensor, bounds: LayerBounds, parallel: bool
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Lower and upper bounds of the given neurons of each input."""
    n, k = neurons.shape
    rows = torch.zeros(n, 2 * k, network.layers[layer].outputs, dtype=region.x.dtype, device=region.x.device)
    rows[:, :k].scatter_(2, neurons[..., None], 1.0)
    rows[:, k:].scatter_(2, neurons[..., None], -1.0)
    slopes = None
    if parallel:
        slopes = [upper_line(a, b)[0][:, None] for a, b in zip(bounds.lower, bounds.upper, strict=True)]
    linear = backward(network, rows, layer, bounds, slopes)
    ends = region.minimum(linear.a, linear.b)
    return ends[:, :k], -ends[:, k:]


@dataclass(frozen=True, eq=False)
class NetworkState(MarginState):
    """What certifiers on this engine prepare: the classifier in float64, the threat model, the network as layers.

    `program` is the precision of the classifier as it came, in which its user runs it.
    """

    network: ReluNetwork
    program: torch.dtype = torch.float32

    @staticmethod
    def of(classifier: Classifier, threat: ThreatModel) -> "NetworkState":
        """Read the network.

        Raises:
            UnsupportedError: it is no ReLU network; the message names the layer.
        """
        return NetworkState(classifier.double(), threat, ReluNetwork.of(classifier), classifier.dtype)


def crown_bounds(
    state: NetworkState, x: Float[Tensor, "n ..."], rows: Float[Tensor, "n k outputs"], eps: Float[Tensor, " n"]
) -> Bounds:
    """CROWN's linear functions below `rows` times the logits."""
    region = Region(state.threat, x.flatten(1), eps)
    bounds = layer_bounds(state.network, region)
    linear = backward(state.network, rows, len(state.network.layers) - 1, bounds)
    return Bounds.linear(linear.a, linear.at(region.x), state.threat, region.x, eps)


def crown_radius(
    state: NetworkState,
    x: Float[Tensor, "n ..."],
    label: Int[Tensor, " n"],
    slack: Float[Tensor, " n"],
    search: RadiusSearch,
    guess: float = math.nan,
) -> Float[Tensor, " n"]:
    """What CROWN certifies, each margin exceeding its input's `slack`: where costlier methods begin.

    With `Secant(evaluations=1)` and a guess, what one look there proves.
    """
    rows = margin_rows(label, state.classifier.num_classes).to(x)
    floor = slack[:, None].expand(rows.shape[:2])

    def bound(index: Int[Tensor, " m"], eps: Float[Tensor, " m"]) -> Evaluation:
        bounds = crown_bounds(state, x[index], rows[index], eps)
        margin = (bounds.lower - floor[index]).amin(dim=1)
        crossing = bounds.crossing(state.threat, x[index].flatten(1), floor[index])
        return Evaluation(torch.where(margin.isfinite(), margin, -torch.inf), crossing)

    clean = clean_margin(state.classifier(x), label) - slack
    start = Start(torch.full_like(slack, guess), tangent(state, x, label))
    return search.run(bound, clean, start).certified
