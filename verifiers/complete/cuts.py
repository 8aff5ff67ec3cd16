"""Choice of the neuron that a leaf is split at, and of the point, for networks with other functions than ReLUs.

GenBaB (Shi et al., 2024) splits the interval of a pre-activation in two and chooses by the bounds that the children
would get. Here neurons with a large gap between the function and the line in use are tried, each at a few points, by
bounding both children without any optimisation. No proof depends on the choice, so it is made in float32.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certbench.core.ball import steepest
from certbench.core.margins import SLACK
from certbench.networks.layers import Bilinear, Network, RowSoftmax
from certbench.networks.piecewise_linear import RELU
from certbench.verifiers.bounds.backward import layer_bounds
from certbench.verifiers.bounds.lines import Lines
from certbench.verifiers.bounds.optimise import Choice, coefficients, evaluate, flat, neurons, widths
from certbench.verifiers.bounds.region import LayerBounds, Linear, Region
from certbench.verifiers.bounds.relaxations import Function, chosen, numbers, undecided

NARROW = 1e-5
"""Smallest width of an interval that is split, in units of its larger end, or of 1 if that is larger: float32."""

CENTRAL = 0.1
"""Smallest share of an interval that is split off at the point where the bound is least. A judgement."""

ANEW = 1000
"""Largest number of neurons of all layers for which linear bounds are computed anew in each leaf; intervals always are.
A judgement."""

HALVES = 8
"""Largest number of half-spaces of each leaf that bounds make use of. A judgement."""

HUGE = 1e30
"""Value of a gap that is infinite: where a function is not defined on all of an interval."""


@torch.no_grad()
def best_cuts(
    fast: Network,
    region: Callable[[int], Region],
    bounds: LayerBounds,
    choice: Choice,
    rows: Float[Tensor, "n 1 outputs"],
    candidates: int,
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Return the neuron to split in each leaf, -1 where every interval is narrow, and the point inside its interval.

    Candidates are the neurons with the largest gap at the minimiser of the bound, and on average over the interval. A
    candidate is split at a joint of its function, at the minimiser, or in the middle. The one whose worse child has the
    best bound wins.

    Args:
        fast: the network in float32.
        region: the ball, once for each leaf.
        bounds: bounds of the leaves' neurons, with their cuts built in.
        choice: lines and multipliers of the leaves.
        rows: the margins that the leaves bound.
        candidates: number of neurons of each leaf that are tried.
    """
    n, ball = len(rows), _single(region(len(rows)))
    small = LayerBounds(tuple(e.float() for e in bounds.lower), tuple(e.float() for e in bounds.upper), bounds.method)
    choice, rows = Choice(choice.alpha.float(), choice.beta.float()), rows.float()
    made = evaluate(fast, ball, small, rows, choice)
    point = (ball.x + steepest(made.a, ball.threat, ball.x, ball.eps).squeeze(1)).nan_to_num(0.0)
    inside = [
        torch.minimum(torch.maximum(z, low), high)
        for z, low, high in zip(fast.preactivations(point)[:-1], small.lower, small.upper, strict=True)
    ]
    h, _ = coefficients(fast, small, rows, choice, len(fast.layers) - 1)
    slopes = torch.split(choice.alpha, widths(fast, small), dim=-1)
    at_point, average, free, places = [], [], [], []
    for i, (low, high) in enumerate(zip(small.lower, small.upper, strict=True)):
        function = fast.activation(i)
        lines = chosen(function, low, high, slopes[i])
        weight = h[i].squeeze(1)
        at_point.append(_gap(function, lines, inside[i], weight))
        thirds = [_gap(function, lines, low + share * (high - low), weight) for share in (1 / 6, 1 / 2, 5 / 6)]
        average.append(torch.stack(thirds).mean(dim=0))
        free.append(_splittable(function, low, high))
        places.append(torch.stack(_points(function, low, high, inside[i])))
    open_, where = torch.cat(free, dim=1), torch.cat(places, dim=2)
    k = min(candidates, open_.shape[1])
    scores = [torch.where(open_, torch.cat(score, dim=1).nan_to_num(HUGE), -1.0) for score in (at_point, average)]
    picks = torch.cat(
        [score.topk(size, dim=1).indices for score, size in zip(scores, (k - k // 2, k // 2), strict=True)], dim=1
    )
    picks = picks.repeat(1, len(where))  # each at every point
    at = torch.cat([part.gather(1, picks[:, :k]) for part in where], dim=1)
    worst = _worse_children(fast, _single(region(picks.numel())), small, choice, rows, picks, at)
    worst = torch.where(open_.gather(1, picks), worst.nan_to_num(-math.inf), -math.inf)
    best = worst.argmax(dim=1, keepdim=True)
    neuron, cut = picks.gather(1, best).squeeze(1), at.gather(1, best).squeeze(1)
    return torch.where(open_.any(dim=1), neuron, -1).cpu(), cut.view(n).double().cpu()


def _single(ball: Region) -> Region:
    return Region(ball.threat, ball.x.float(), ball.eps.float())


def _gap(function: Function, lines: Lines, z: Tensor, h: Tensor) -> Float[Tensor, "n size"]:
    """Return what the line in use loses at z, times its coefficient, for each pre-activation."""
    value = function.value(z)
    below, above = lines.lower_slope.squeeze(1), lines.upper_slope.squeeze(1)
    if isinstance(function, RowSoftmax):  # of the entries themselves, as all others of the row count for each
        columns = function.rows(z)[..., None]
        parts = [(slope @ columns).squeeze(-1).flatten(-2) for slope in (below, above)]
    else:
        parts = [below * z, above * z]
    if isinstance(function, Bilinear):
        parts = [sum(part.chunk(2, dim=-1)) for part in parts]  # type: ignore[misc]
    offset = 0.0 if lines.lower_offset is None else lines.lower_offset.squeeze(1)
    lower, upper = value - parts[0] - offset, parts[1] + lines.upper_offset.squeeze(1) - value
    gap = torch.where(h > 0, h * lower, -h * upper).clamp(min=0, max=HUGE)
    return torch.cat([gap, gap], dim=-1) if isinstance(function, Bilinear) else gap


def _splittable(function: Function, low: Tensor, high: Tensor) -> Bool[Tensor, "n size"]:
    """Say which intervals are finite, not narrow, and have a function on them that is not known to be linear."""
    size = torch.maximum(low.abs(), high.abs()).clamp(min=1.0)
    return undecided(function, low, high) & (high - low > NARROW * size) & size.isfinite()


def _points(function: Function, low: Tensor, high: Tensor, z: Tensor) -> list[Tensor]:
    """Return the points where each interval may be split: a joint if there is one inside, near z, and the middle."""
    middle, room = low / 2 + high / 2, CENTRAL * (high - low)
    near = torch.minimum(torch.maximum(z, low + room), high - room)
    if isinstance(function, Bilinear | RowSoftmax):
        return [middle, near, middle]
    joint = middle
    nearest = torch.full_like(middle, math.inf)
    for other in function.joints_near(low):
        distance = torch.where((low < other) & (other < high), (other - middle).abs(), math.inf)
        joint, nearest = torch.where(distance < nearest, other, joint), torch.minimum(nearest, distance)
    if all(bend == 0 for bend in function.bends):  # on its pieces it is linear: no other point is as good
        return [joint, joint, joint]
    return [joint, near, middle]


def _worse_children(
    fast: Network,
    ball: Region,
    bounds: LayerBounds,
    choice: Choice,
    rows: Tensor,
    picks: Int[Tensor, "n k"],
    at: Float[Tensor, "n k"],
) -> Float[Tensor, "n k"]:
    """Return the worse bound of the two children of each candidate, without any optimisation."""
    low, high = flat(bounds)
    n, k = picks.shape
    sizes, neuron, cut = neurons(bounds), picks.reshape(-1, 1), at.reshape(-1, 1)
    alpha, beta, rows = (part.repeat_interleave(k, dim=0) for part in (choice.alpha, choice.beta, rows))
    results = []
    for sign in (1, -1):
        a, b = (end.repeat_interleave(k, dim=0) for end in (low, high))
        (a if sign > 0 else b).scatter_(1, neuron, cut)
        ends = torch.split(a, sizes, dim=1), torch.split(b, sizes, dim=1)
        child = LayerBounds(*ends, bounds.method)
        start = Choice(_renewed(fast, child, alpha, neuron.squeeze(1)), beta)
        results.append(evaluate(fast, ball, child, rows, start).lower.view(n, k))
    return torch.minimum(*results) + 1e-3 * torch.maximum(*results)


def _renewed(
    network: Network, bounds: LayerBounds, alpha: Float[Tensor, "n 1 _"], neuron: Int[Tensor, " n"]
) -> Float[Tensor, "n 1 _"]:
    """Return slopes with CROWN's numbers for one neuron of each row, whose interval has changed."""
    alpha = alpha.clone()
    first = start = 0
    for i, (size, width) in enumerate(zip(neurons(bounds), widths(network, bounds), strict=True)):
        function, place = network.activation(i), neuron - start
        rows = ((place >= 0) & (place < size)).nonzero().squeeze(1)
        if len(rows) and function != RELU and not isinstance(function, Bilinear | RowSoftmax):
            place = place[rows]
            ends = (end[i][rows, place][None] for end in (bounds.lower, bounds.upper))
            below, above = numbers(function.at(place), *ends)[0].chunk(2)
            alpha[rows, 0, first + place], alpha[rows, 0, first + size + place] = below, above
        start, first = start + size, first + width
    return alpha


def first_behind(network: Network, neuron: int) -> int:
    """Return the first hidden layer that a cut of a neuron, given by its place among all, makes narrower.

    A cut of a neuron that reads the input alone is a half-space, in which all neurons have narrower intervals.
    """
    for i, layer in enumerate(network.hidden):
        if neuron < layer.outputs:
            return 0 if list(layer.maps) == [0] else i + 1
        neuron -= layer.outputs
    raise IndexError(neuron)


class Cuts(NamedTuple):
    """The cuts of several leaves.

    Attributes:
        owner: the leaf of each cut.
        neuron: the place of its neuron among all.
        sign: 1 for z >= point, -1 for z <= point.
        point: the points.
    """

    owner: Int[Tensor, " cuts"]
    neuron: Int[Tensor, " cuts"]
    sign: Int[Tensor, " cuts"]
    point: Float[Tensor, " cuts"]


def half_spaces(network: Network, x: Float[Tensor, "n d"], cuts: Cuts) -> Linear | None:
    """Write the last cuts of each leaf that are half-spaces of the input; None if there are none."""
    owner, neuron, sign, point = cuts
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(len(x))]
    start = 0
    for layer in network.hidden:
        if list(layer.maps) == [0]:
            some = ((neuron >= start) & (neuron < start + layer.outputs)).nonzero().squeeze(1)
            rows = torch.zeros(len(some), layer.outputs, dtype=x.dtype, device=x.device)
            rows[torch.arange(len(some)), neuron[some] - start] = sign[some].to(x)
            a, b = layer.maps[0].transpose(rows), rows @ layer.bias - sign[some] * point[some]
            for i, leaf in enumerate(owner[some].tolist()):
                found[leaf].append((a[i], b[i]))
        start += layer.outputs
    count = min(HALVES, max(len(some) for some in found))
    if count == 0:
        return None
    slopes, offsets = x.new_zeros(len(x), count, x.shape[1]), x.new_zeros(len(x), count)
    for leaf, lines in enumerate(found):
        for i, (a, b) in enumerate(lines[-count:]):
            slopes[leaf, i], offsets[leaf, i] = a, b
    return Linear(slopes, offsets)


def places_of(neuron: int, network: Network, bounds: LayerBounds) -> list[int]:
    """Return the places in `Choice.alpha` of numbers that have another meaning once the neuron's interval is cut."""
    first = start = 0
    for size, width in zip(neurons(bounds), widths(network, bounds), strict=True):
        if neuron < start + size:
            place = first + neuron - start
            return [] if width == size else [place, place + size]
        start, first = start + size, first + width
    raise IndexError(neuron)


@torch.no_grad()
def cut_bounds(
    network: Network,
    region: Region,
    bounds: LayerBounds,
    cuts: Cuts,
    first: int | None,
    slack: float,
) -> tuple[LayerBounds, Bool[Tensor, " n"]]:
    """Build the cuts of leaves into bounds of their neurons, and bound the layers behind the cuts anew.

    Args:
        network: the network, in float64.
        region: the ball of each leaf, with half-spaces.
        bounds: bounds of each leaf's neurons that hold without these cuts.
        cuts: the cuts.
        first: the first layer that is bounded anew; None: nothing is.
        slack: allowance for rounding.

    Returns:
        The bounds, and which leaves are empty for sure.
    """
    low, high = (end.clone() for end in flat(bounds, len(region)))
    at, point = cuts.owner * low.shape[1] + cuts.neuron, cuts.point
    low.view(-1).scatter_reduce_(0, at, torch.where(cuts.sign > 0, point, -math.inf), "amax")
    high.view(-1).scatter_reduce_(0, at, torch.where(cuts.sign < 0, point, math.inf), "amin")
    low, high, empty = _ordered(low, high, slack)
    if first is not None:
        first = len(network.hidden) if low.shape[1] > ANEW else first
        known = LayerBounds(torch.split(low, neurons(bounds), 1), torch.split(high, neurons(bounds), 1), bounds.method)
        low, high, more = _ordered(*flat(layer_bounds(network, region, "crown", known, first=first)), slack)
        empty = empty | more
    return LayerBounds(
        torch.split(low, neurons(bounds), 1), torch.split(high, neurons(bounds), 1), bounds.method
    ), empty


def _ordered(low: Tensor, high: Tensor, slack: float) -> tuple[Tensor, Tensor, Bool[Tensor, " n"]]:
    """Exchange ends that rounding brought into the wrong order, and say which leaves have ends further apart."""
    size = torch.maximum(low.abs(), high.abs()).nan_to_num(0.0, 0.0)
    empty = (low - high > slack + SLACK * size).any(dim=1)
    return torch.minimum(low, high), torch.maximum(low, high), empty
