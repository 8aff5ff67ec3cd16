"""Interval bounds."""

import torch

from certbench.networks.relu import ReluNetwork
from certbench.verifiers.bounds.region import LayerBounds, Region


def interval_bounds(network: ReluNetwork, region: Region) -> LayerBounds:
    """Bound all hidden layers by interval arithmetic (IBP), from the box around each ball."""
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


@torch.no_grad()
def intervals(network: ReluNetwork, region: Region) -> LayerBounds:
    """Bound all hidden layers over one ball by intervals; first layers are bounded over the ball itself."""
    box, lower, upper = region.box(), [], []
    lows, highs = [box[0]], [box[1]]
    for layer in network.hidden:
        if list(layer.maps) == [0]:
            a, b = layer.maps[0].matrix()[None], layer.bias[None]
            low, high = region.minimum(a, b), -region.minimum(-a, -b)
        else:
            low = layer.bias.expand(1, -1)
            high = low
            for source, part in layer.maps.items():
                middle, half = (lows[source] + highs[source]) / 2, (highs[source] - lows[source]) / 2
                centre, radius = part.forward(middle), part.absolute().forward(half)
                low, high = low + centre - radius, high + centre + radius
        lower.append(low)
        upper.append(high)
        lows.append(low.clamp(min=0))
        highs.append(high.clamp(min=0))
    return LayerBounds(tuple(lower), tuple(upper), "ibp")
