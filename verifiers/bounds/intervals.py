"""Interval bounds."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.core import ball
from certbench.networks.layers import Layer, Network
from certbench.networks.maps import Map, unit_vectors
from certbench.verifiers.bounds.region import LayerBounds, Region
from certbench.verifiers.bounds.relaxations import image


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
    """Interval arithmetic, one layer at a time, on bounds that may be sharpened on the way."""

    def __init__(self, network: Network, region: Region) -> None:
        """Start with the box around each ball."""
        self.network, self.count = network, len(region)
        self.centres, self.radii = ([part] for part in _middle(*region.box()))

    def step(self) -> tuple[Float[Tensor, "n size"], Float[Tensor, "n size"]]:
        """Bound the next layer."""
        i = len(self.centres) - 1
        low, high = self._affine(self.network.layers[i], self.network.absolute[i])
        peak = self.network.peaks.get(i)
        if peak is None:
            return low, high
        moduli = {source: part.absolute() for source, part in peak.layer.maps.items()}
        least, most = (end[:, peak.windows].amax(dim=1) for end in self._affine(peak.layer, moduli))
        return torch.maximum(low, least), torch.minimum(high, most)

    def _affine(
        self, layer: Layer, moduli: Mapping[int, Map]
    ) -> tuple[Float[Tensor, "n size"], Float[Tensor, "n size"]]:
        """Bound an affine layer."""
        centre = layer.bias.expand(self.count, -1)
        radius = torch.zeros_like(centre)
        for source, part in layer.maps.items():
            centre = centre + part.forward(self.centres[source])
            radius = radius + _spread(moduli[source], self.radii[source])
        return centre - radius, centre + radius

    def done(self, low: Float[Tensor, "n size"], high: Float[Tensor, "n size"]) -> None:
        """Take the bounds of that layer, and go on behind its activation."""
        middle = _middle(*image(self.network.activation(len(self.centres) - 1), low, high))
        self.centres.append(middle[0])
        self.radii.append(middle[1])

    def end(self, rows: Float[Tensor, "n k outputs"], region: Region) -> Float[Tensor, "n k"]:
        """Bound `rows` times the outputs from below; the last layer is merged with the rows."""
        layer = self.network.layers[-1]
        lower = rows @ layer.bias
        for source, part in layer.maps.items():
            a = part.transpose(rows.flatten(0, 1)).view(*rows.shape[:2], part.inputs)
            if source == 0:
                lower = lower + region.minimum(a, torch.zeros_like(lower))
                continue
            centre, radius = self.centres[source][..., None], self.radii[source][..., None]
            infinite = radius.isinf()
            fall = (a.abs() @ torch.where(infinite, 0.0, radius)).squeeze(-1)
            lost = (a.abs() @ infinite.to(a)).squeeze(-1) > 0
            lower = lower + (a @ centre).squeeze(-1) - torch.where(lost, torch.inf, fall)
        return lower


def _middle(low: Float[Tensor, "n m"], high: Float[Tensor, "n m"]) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
    """Return the middle of each interval and half its width; 0 and infinity if an end is infinite."""
    infinite = low.isinf() | high.isinf()
    if not bool(infinite.any()):
        return (low + high) / 2, (high - low) / 2
    return torch.where(infinite, 0.0, (low + high) / 2), torch.where(infinite, torch.inf, (high - low) / 2)


def _spread(moduli: Map, radius: Float[Tensor, "n m"]) -> Float[Tensor, "n outputs"]:
    """Return the product of a map of moduli and radii, where 0 times infinity is 0."""
    infinite = radius.isinf()
    if not bool(infinite.any()):
        return moduli.forward(radius)
    reached = moduli.forward(infinite.to(radius)) > 0
    return torch.where(reached, torch.inf, moduli.forward(torch.where(infinite, 0.0, radius)))
