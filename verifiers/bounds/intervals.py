"""Interval bounds."""

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.networks.layers import Network
from certbench.networks.maps import Map
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


class Walk:
    """Interval arithmetic, one layer at a time, on bounds that may be sharpened on the way."""

    def __init__(self, network: Network, region: Region) -> None:
        """Start with the box around each ball."""
        self.network, self.count = network, len(region)
        self.centres, self.radii = ([part] for part in _middle(*region.box()))

    def step(self) -> tuple[Float[Tensor, "n size"], Float[Tensor, "n size"]]:
        """Bound the next layer."""
        i = len(self.centres) - 1
        centre = self.network.layers[i].bias.expand(self.count, -1)
        radius = torch.zeros_like(centre)
        for source, part in self.network.layers[i].maps.items():
            centre = centre + part.forward(self.centres[source])
            radius = radius + _spread(self.network.absolute[i][source], self.radii[source])
        return centre - radius, centre + radius

    def done(self, low: Float[Tensor, "n size"], high: Float[Tensor, "n size"]) -> None:
        """Take the bounds of that layer, and go on behind its activation."""
        middle = _middle(*image(self.network.activation(len(self.centres) - 1), low, high))
        self.centres.append(middle[0])
        self.radii.append(middle[1])


@torch.no_grad()
def intervals(network: Network, region: Region) -> LayerBounds:
    """Bound all hidden layers over one ball by intervals; first layers are bounded over the ball itself."""
    box, lower, upper = region.box(), [], []
    lows, highs = [box[0]], [box[1]]
    for i, layer in enumerate(network.hidden):
        if list(layer.maps) == [0]:
            a, b = layer.maps[0].matrix()[None], layer.bias[None]
            low, high = region.minimum(a, b), -region.minimum(-a, -b)
        else:
            low = layer.bias.expand(1, -1)
            high = low
            for source, part in layer.maps.items():
                middle, half = _middle(lows[source], highs[source])
                centre, radius = part.forward(middle), _spread(part.absolute(), half)
                low, high = low + centre - radius, high + centre + radius
        lower.append(low)
        upper.append(high)
        below, above = image(network.activation(i), low, high)
        lows.append(below)
        highs.append(above)
    return LayerBounds(tuple(lower), tuple(upper), "ibp")


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
