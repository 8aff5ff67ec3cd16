r"""Linear relaxations of networks, backwards: one engine for Fast-Lin, CROWN, alpha-CROWN, LP duals and splits.

Every activation has a line below it and a line above it on [l, u]; `lines` proves them. For a ReLU with l < 0 < u they
are $\alpha z \leq \max(z, 0) \leq u (z - l) / (u - l)$ for every $\alpha \in [0, 1]$. Put into $c \cdot f$ layer by
layer, they give a linear function of the input that lies below it (Weng et al., 2018; Zhang et al., 2018). For fixed l
and u the best of all $\alpha$ is the LP relaxation's dual (Salman et al., 2019), so that any approximate dual solution
of a solver becomes a bound here, in float64, whatever the solver's accuracy. A split $s z \geq 0$ enters with a
multiplier $\beta \geq 0$ (Wang et al., 2021).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from certbench.core.margins import Bounds
from certbench.core.memory import out_of_memory
from certbench.errors import NumericalError
from certbench.networks.layers import Layer, Network
from certbench.networks.piecewise_linear import IDENTITY
from certbench.verifiers.bounds.intervals import Walk, interval_bounds, output_bounds
from certbench.verifiers.bounds.lines import Lines
from certbench.verifiers.bounds.region import LayerBounds, Linear, Region
from certbench.verifiers.bounds.relaxations import chosen, undecided
from certbench.verifiers.bounds.supports import finite

ENTRIES = 2**20
"""Largest number of coefficients that are held at once for one layer of features: 8 MB in float64. That fits a
processor's cache, and was faster than 2**22 and 2**24 on networks of digits and MNIST."""

SHARED = 8
"""Number of batches of intermediate bounds that a network remembers."""


def backward(
    network: Network,
    rows: Float[Tensor, "n k outputs"],
    layer: int,
    bounds: LayerBounds,
    slopes: Sequence[Tensor] | None = None,
    multipliers: Sequence[Tensor] | None = None,
) -> Linear:
    """Return linear functions of the input below `rows` times the outputs of `layer`, valid where `bounds` hold.

    Args:
        network: the network; `layers[layer]` is bounded, and the last one gives the logits.
        rows: linear functions of that layer's outputs.
        layer: its index in `network.layers`.
        bounds: bounds of the hidden layers before it.
        slopes: by hidden layer, numbers in [0, 1] that choose the lines, broadcast to (n, k, _): for a ReLU the slope
            of the line below, clamped into [0, 1]; for others see `lines.chosen`. None: the lines of `bounds`.
        multipliers: by hidden layer, numbers that are added to the coefficients of the pre-activations, broadcast to
            (n, k, size). They are sound only where a split fixes the sign of z, so that the term m z is at most 0.
    """
    z = rows[:1] if rows.stride(0) == 0 else rows  # the same for all inputs, until their bounds come in
    coefficients = _pulled(network.layers[layer], z)
    constant = torch.zeros(rows.shape[:2], dtype=rows.dtype, device=rows.device) + z @ network.layers[layer].bias
    return _descended(network, coefficients, constant, bounds, slopes, multipliers)


def _pulled(layer: Layer, z: Float[Tensor, "n k size"]) -> dict[int, Float[Tensor, "n k _"]]:
    """Return the coefficients of each source in linear functions of a layer's outputs."""
    return {
        source: step.transpose(z.flatten(0, 1)).view(*z.shape[:2], step.inputs) for source, step in layer.maps.items()
    }


def _descended(
    network: Network,
    coefficients: dict[int, Float[Tensor, "_ k _"]],
    constant: Float[Tensor, "n k"],
    bounds: LayerBounds,
    slopes: Sequence[Tensor] | None = None,
    multipliers: Sequence[Tensor] | None = None,
) -> Linear:
    """Replace activations by their lines, from the last source of linear functions down to the input."""
    while True:
        at: int = max(coefficients)
        if at == 0:
            return Linear(coefficients[0].expand(len(constant), -1, -1), constant)
        h, at = coefficients.pop(at), at - 1
        function = network.activation(at)
        if function == IDENTITY:
            z = h
        else:
            z, offsets = (
                through(bounds.lines(network, at), h)
                if slopes is None
                else through(chosen(function, bounds.lower[at], bounds.upper[at], slopes[at]), h)
            )
            constant = constant + offsets
        if multipliers is not None:
            z = z + multipliers[at]
        constant = constant + z @ network.layers[at].bias
        for source, pulled in _pulled(network.layers[at], z).items():
            coefficients[source] = coefficients[source] + pulled if source in coefficients else pulled


def through(lines: Lines, h: Float[Tensor, "_ k m"]) -> tuple[Float[Tensor, "_ k size"], Float[Tensor, "_ k"]]:
    """Replace an activation by its lines: return coefficients of its inputs and constants, below `h` times its outputs.

    The lines broadcast to (n, k, _). For a product of two there are two slopes for each output, for a softmax as many
    as its row has entries: (n, k, rows, row, row).
    """
    up = h.clamp(max=0)
    down = h - up
    constant = _offsets(up, lines.upper_offset)
    if lines.lower_offset is not None:
        constant = constant + _offsets(down, lines.lower_offset)
    if lines.lower_slope.dim() == 5:
        parts = ((down, lines.lower_slope), (up, lines.upper_slope))
        moved = [part.reshape(*part.shape[:2], slope.shape[2], 1, slope.shape[3]) @ slope for part, slope in parts]
        return (moved[0] + moved[1]).flatten(2), constant
    if lines.lower_slope.shape[-1] == h.shape[-1]:
        return torch.addcmul(down * lines.lower_slope, up, lines.upper_slope), constant
    slopes = lines.lower_slope, lines.upper_slope
    below, above = (s.view(*s.shape[:-1], 2, s.shape[-1] // 2) for s in slopes)  # of both factors
    return (down[..., None, :] * below).addcmul_(up[..., None, :], above).flatten(-2), constant


def _offsets(h: Float[Tensor, "_ k m"], offset: Tensor) -> Float[Tensor, "_ k"]:
    """Sum up coefficients times offsets; an infinite offset counts only where its coefficient is not zero."""
    if not finite(offset):
        return torch.where(h == 0, 0.0, h * offset).sum(dim=-1)
    if offset.shape[1] == 1:
        return (h @ offset.transpose(1, 2)).squeeze(-1)
    return (h * offset).sum(dim=-1)


@torch.no_grad()
def lower_bounds(network: Network, region: Region, rows: Float[Tensor, "n k outputs"], bounds: LayerBounds) -> Bounds:
    """Bound `rows` times the outputs from below by one backward pass, from bounds of the hidden layers."""
    linear = backward(network, rows, len(network.hidden), bounds)
    found = Bounds.linear(linear.a, linear.at(region.x), region.threat, region.x, region.eps)
    return raised(network, region, rows, bounds, found)


def raised(
    network: Network, region: Region, rows: Float[Tensor, "n k outputs"], bounds: LayerBounds, found: Bounds
) -> Bounds:
    """Raise bounds of `rows` times the outputs to those of intervals, unless the network is piecewise linear.

    Lines around a function that saturates or rises fast are far from it on wide intervals, where its range is small.
    Piecewise linear networks keep the bounds of the method as it is published.
    """
    return found if network.piecewise_linear else found.at_least(output_bounds(network, region, rows, bounds))


def layer_bounds(
    network: Network,
    region: Region,
    method: str = "crown",
    known: LayerBounds | None = None,
    entries: int = ENTRIES,
    errors: Sequence[Tensor] | None = None,
    first: int = 0,
) -> LayerBounds:
    """Bound all hidden layers over the balls, layer by layer; the network remembers the bounds asked for last.

    Args:
        network: the network.
        region: the balls.
        method: "ibp", "crown" (adaptive lower slopes; intervals where they are better), or "fast-lin": lower slopes
            u / (u - l), and in ReLU networks no intervals, as Weng et al. (2018) and Wong and Kolter (2018).
        known: sound bounds that the result is intersected with, for example those of a larger ball.
        entries: the most coefficients held at once; halved while memory runs out.
        errors: largest effect of rounding on a bound, by layer; each bound is widened by it before it is used.
        first: the first hidden layer that is bounded by `method`; those before it have the bounds that are `known`.

    Raises:
        NumericalError: a bound is NaN.
    """
    if known is not None or errors is not None:
        return _layer_bounds(network, region, method, known, entries, errors, first)
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
    network: Network,
    region: Region,
    method: str,
    known: LayerBounds | None,
    entries: int,
    errors: Sequence[Tensor] | None,
    first: int = 0,
) -> LayerBounds:
    alone = method == "fast-lin" and not network.activations  # without intervals, as in the papers
    walked = bool(network.activations) and method != "ibp"  # intervals come from the sharper bounds, layer by layer
    start = _unbounded(network, region) if alone or walked else interval_bounds(network, region).widened(errors)
    if known is not None:
        start = start.tightened(known, method)
    if method == "ibp":
        return start
    lower, upper = [*start.lower], [*start.upper]
    drawn: dict[int, Lines] = {}
    walk = Walk(network, region) if walked else None
    for i, layer in enumerate(network.hidden):
        if walk is not None:
            low, high = walk.step()
            if errors is not None:
                low, high = low - errors[i], high + errors[i]
            lower[i], upper[i] = torch.maximum(lower[i], low), torch.minimum(upper[i], high)
        box = region.threat.p == math.inf and region.cuts is None
        exact = box and list(layer.maps) == [0] and not alone  # intervals are, over a box
        if i >= first and not exact and i not in network.copied:
            open_ = undecided(network.activation(i), lower[i], upper[i]) | (i in network.bounded)
            so_far = LayerBounds(tuple(lower[:i]), tuple(upper[:i]), method, drawn)
            for at in range(i if bool(open_.any()) else 0):  # once for all pieces, and for the layers behind
                so_far.lines(network, at)
            low, high = _both_ends(network, region, i, open_, so_far, entries)
            if errors is not None:
                low, high = low - errors[i], high + errors[i]
            # What intervals leave stable stays so, and its bounds are not used: no need to sharpen them.
            lower[i] = torch.where(open_, torch.maximum(lower[i], low), lower[i])
            upper[i] = torch.where(open_, torch.minimum(upper[i], high), upper[i])
        if walk is not None:
            walk.done(lower[i], upper[i])
    if not finite(*lower, *upper) and any(bool(end.isnan().any()) for end in (*lower, *upper)):
        raise NumericalError("a layer's bounds are NaN")
    return LayerBounds(tuple(lower), tuple(upper), method, drawn)


def _unbounded(network: Network, region: Region) -> LayerBounds:
    """Return bounds that say nothing."""
    lower = tuple(layer.bias.new_full((len(region), layer.outputs), -torch.inf) for layer in network.hidden)
    return LayerBounds(lower, tuple(-low for low in lower), "fast-lin")


def _both_ends(
    network: Network,
    region: Region,
    layer: int,
    open_: Bool[Tensor, "n size"],
    bounds: LayerBounds,
    entries: int,
) -> tuple[Float[Tensor, "n size"], Float[Tensor, "n size"]]:
    """Bound the neurons of a hidden layer that need it, as many at a time as memory allows."""
    widest = max([network.inputs, *(part.outputs for part in network.layers[: layer + 1])])
    counts = open_.sum(dim=1)
    order = open_.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    low = torch.full(open_.shape, -torch.inf, dtype=region.x.dtype, device=region.x.device)
    high = -low
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
            made = _ends(network, region[part], layer, neurons, bounds[part])
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error) or (last - first == 1 and end - at == 1):
                raise
            rest += _halves(first, last, at, end, counts)
            continue
        low[part] = low[part].scatter(1, neurons, made[0])
        high[part] = high[part].scatter(1, neurons, made[1])
    return low, high


def _halves(first: int, last: int, at: int, end: int, counts: Tensor) -> list[tuple[int, int, int, int]]:
    """Halve a piece of work: fewer inputs, or fewer neurons of a single input."""
    if last - first == 1:
        middle = (at + end) // 2
        return [(first, last, at, middle), (first, last, middle, end)]
    middle = (first + last) // 2
    pieces = [(first, middle), (middle, last)]
    return [(a, b, at, min(end, int(counts[a:b].max()))) for a, b in pieces]


def _ends(
    network: Network, region: Region, layer: int, neurons: Tensor, bounds: LayerBounds
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Return lower and upper bounds of the given neurons of each input."""
    k, part = neurons.shape[1], network.layers[layer]
    if network.activations and bool((neurons == neurons[:1]).all()):
        neurons = neurons[:1]  # the same for all inputs, until their bounds come in
    coefficients = {source: step.rows(neurons.flatten()).view(*neurons.shape, -1) for source, step in part.maps.items()}
    both = {source: torch.cat([rows, -rows], dim=1) for source, rows in coefficients.items()}
    constant = part.bias[neurons].expand(len(region), -1)
    linear = _descended(network, both, torch.cat([constant, -constant], dim=1), bounds)
    ends = region.minimum(linear.a, linear.b)
    return ends[:, :k], -ends[:, k:]
