"""Interval bounds."""

import math
from collections.abc import Collection, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.core import ball
from certbench.networks.layers import Layer, Network
from certbench.networks.maps import Map, unit_vectors
from certbench.numerics.rounding import gamma
from certbench.verifiers.bounds.region import LayerBounds, Region
from certbench.verifiers.bounds.relaxations import image
from certbench.verifiers.bounds.supports import finite


def interval_bounds(network: Network, region: Region) -> LayerBounds:
    """Bound all hidden layers by interval arithmetic (IBP), from the box around each ball."""
    walk = Walk(network, region)
    lower, upper = [], []
    for _ in network.hidden:
        low, high = walk.step()
        lower.append(low)
        upper.append(high)
        walk.done(low, high)
    return LayerBounds(tuple(lower), tuple(upper), "ibp")


ROWS = 2**22
"""Largest number of coefficients of first layers that are held at once: 32 MB in float64."""


@torch.no_grad()
def first_layers(
    network: Network, region: Region
) -> dict[int, tuple[Float[Tensor, "n size"], Float[Tensor, "n size"]]]:
    """Bound the hidden layers that read the input alone over the balls themselves, not over their boxes.

    Over a box, intervals are exact, and there is nothing to do.

    Returns:
        Lower and upper bounds, by hidden layer.
    """
    found: dict[int, tuple[Tensor, Tensor]] = {}
    threat, n = region.threat, len(region)
    for i, layer in enumerate(network.hidden):
        if threat.p == math.inf or list(layer.maps) != [0]:
            continue
        part, low, high = layer.maps[0], [], []
        centre = part.forward(region.x) + layer.bias
        copies = 1 if threat.domain is None else n
        step = max(1, ROWS // max(1, copies * part.inputs, part.unfolded))
        for some in unit_vectors(layer.outputs, step, centre.device, centre.dtype):
            a = part.transpose(some)[None]
            if threat.domain is None:
                drop = rise = region.eps[:, None] * ball.length(a, threat.q)
            else:
                a = a.expand(n, -1, -1)
                drop = ball.fall(a, threat, region.x, region.eps)
                rise = ball.fall(-a, threat, region.x, region.eps)
            low.append(drop)
            high.append(rise)
        found[i] = centre - torch.cat(low, dim=1), centre + torch.cat(high, dim=1)
    return found


@torch.no_grad()
def ball_intervals(network: Network, region: Region) -> tuple[LayerBounds, "Walk"]:
    """Bound all hidden layers by interval arithmetic, first layers over the balls; return the walk's end, too."""
    first, walk = first_layers(network, region), Walk(network, region)
    lower, upper = [], []
    for i in range(len(network.hidden)):
        low, high = first[i] if i in first else walk.step()
        lower.append(low)
        upper.append(high)
        walk.done(low, high)
    return LayerBounds(tuple(lower), tuple(upper), "ibp"), walk


class Walk:
    """Interval arithmetic, one layer at a time, on bounds that may be sharpened on the way.

    All is rounded outward. Ends that are 1e17 apart leave a centre and a radius that differ by 1 or more in their last
    digit. Steep functions, as the logarithm is near 0, make a wrong bound of that.
    """

    def __init__(self, network: Network, region: Region) -> None:
        """Start with the box around each ball."""
        self.network, self.count = network, len(region)
        low, high = region.box()
        self.lower, self.upper = [low], [high]

    def step(self) -> tuple[Float[Tensor, "n size"], Float[Tensor, "n size"]]:
        """Bound the next layer."""
        i = len(self.lower) - 1
        low, high = self._affine(self.network.layers[i], self.network.absolute[i], self.network.nonnegative[i])
        peak = self.network.peaks.get(i)
        if peak is None:
            return low, high
        least, most = (end[:, peak.windows].amax(dim=1) for end in self._affine(peak.layer, peak.absolute, False))
        return torch.maximum(low, least), torch.minimum(high, most)

    def _affine(
        self, layer: Layer, moduli: Mapping[int, Map], nonnegative: bool
    ) -> tuple[Float[Tensor, "n size"], Float[Tensor, "n size"]]:
        """Bound an affine layer."""
        share = _share(layer.maps.values())
        bias = layer.bias.expand(self.count, -1)
        if nonnegative:  # each end by itself, with a small relative error
            ends = []
            for sign, given in ((-1, self.lower), (1, self.upper)):
                end, size = bias, bias.abs()
                for source, part in layer.maps.items():
                    end, size = end + _moved(part, given[source]), size + _moved(part, given[source].abs())
                ends.append(torch.where(end.isinf(), end, end + sign * share * size))
            return ends[0], ends[1]
        centre, radius = bias, share * bias.abs()
        for source, part in layer.maps.items():
            middle, half = _middle(self.lower[source], self.upper[source])
            centre = centre + part.forward(middle)
            radius = radius + _moved(moduli[source], half + share * (middle.abs() + half))
        return centre - radius, centre + radius

    def done(self, low: Float[Tensor, "n size"], high: Float[Tensor, "n size"]) -> None:
        """Take the bounds of that layer, and go on behind its activation."""
        low, high = image(self.network.activation(len(self.lower) - 1), low, high)
        self.lower.append(low)
        self.upper.append(high)

    def end(self, rows: Float[Tensor, "n k outputs"], region: Region) -> Float[Tensor, "n k"]:
        """Bound `rows` times the outputs from below; the last layer is merged with the rows."""
        return _outputs(self.network, region, rows, dict(enumerate(zip(self.lower, self.upper, strict=True))))


@torch.no_grad()
def output_bounds(
    network: Network, region: Region, rows: Float[Tensor, "n k outputs"], bounds: LayerBounds
) -> Float[Tensor, "n k"]:
    """Bound `rows` times the outputs from below, by intervals from bounds of the hidden layers."""
    images = {
        source: image(network.activation(source - 1), bounds.lower[source - 1], bounds.upper[source - 1])
        for source in network.layers[-1].maps
        if source > 0
    }
    return _outputs(network, region, rows, images)


def _outputs(
    network: Network, region: Region, rows: Float[Tensor, "n k outputs"], images: Mapping[int, tuple[Tensor, Tensor]]
) -> Float[Tensor, "n k"]:
    """Bound `rows` times the outputs from below; `images` bounds what the last layer reads, by source."""
    layer = network.layers[-1]
    lower, size = rows @ layer.bias, rows.abs() @ layer.bias.abs()
    for source, part in layer.maps.items():
        a = part.transpose(rows.flatten(0, 1)).view(*rows.shape[:2], part.inputs)
        if source == 0:
            lower = lower + region.minimum(a, torch.zeros_like(lower))
            continue
        low, high = (side[..., None] for side in images[source])
        infinite = low.isinf() | high.isinf()
        low, high = torch.where(infinite, 0.0, low), torch.where(infinite, 0.0, high)
        moduli = network.absolute[-1][source].transpose(rows.abs().flatten(0, 1)).view_as(a)
        lost = (moduli @ infinite.to(a)).squeeze(-1) > 0  # where `a` is 0, it may be so by rounding alone
        size = size + (moduli @ torch.maximum(low.abs(), high.abs())).squeeze(-1)
        least = (a.clamp(min=0) @ low + a.clamp(max=0) @ high).squeeze(-1)
        lower = lower + torch.where(lost, -torch.inf, least)
    steps = [part.transposed_roundings + part.inputs for part in layer.maps.values()]
    return lower - gamma(2 * (max(steps, default=0) + layer.outputs + 16)) * size


def _share(maps: Collection[Map]) -> float:
    """Return what rounding may add to sums of moduli in an affine layer, relative to them."""
    return gamma(2 * (max((part.roundings for part in maps), default=0) + len(maps) + 8))


def _middle(low: Float[Tensor, "n m"], high: Float[Tensor, "n m"]) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
    """Return the middle of each interval and half its width; 0 and infinity if an end is infinite."""
    if finite(low, high):
        return (low + high) / 2, (high - low) / 2
    infinite = low.isinf() | high.isinf()
    return torch.where(infinite, 0.0, (low + high) / 2), torch.where(infinite, torch.inf, (high - low) / 2)


def _moved(part: Map, end: Float[Tensor, "n m"]) -> Float[Tensor, "n outputs"]:
    """Apply a map without negative entries to ends of one sign where they are infinite; 0 times infinity is 0."""
    if finite(end):
        return part.forward(end)
    found = part.forward(torch.where(end.isinf(), 0.0, end))
    for sign in (-1, 1):
        reached = part.forward((end == sign * torch.inf).to(end)) > 0
        found = torch.where(reached, sign * torch.inf, found)
    return found
