"""Predictions of the memory and the time that auto-LiRPA needs for one input, from the sizes of a network.

It holds the coefficients of all neurons of a layer at once, for lower and for upper bounds. Behind convolutions these
are patches, as large as the part of an earlier layer that a neuron sees.
"""

import math

import torch

from certbench.core.memory import Cost
from certbench.core.threat import ThreatModel
from certbench.networks.image_maps import Convolution
from certbench.networks.layers import Network
from certbench.networks.maps import Chain, Map, Sum
from certbench.verifiers.bounds.costs import BASE, BYTES, EVALUATIONS, Sizes, pace

BACKWARD = 8
"""Number of entries for each coefficient of a layer's neurons at the widest layer before it: lower and upper ones, each
in four copies. Measured: 145 MB for one input of a network of digits with layers of 2704 and 800 neurons."""

FORWARD = 6
"""Number of entries that are kept for each neuron and each entry of the input by forward bounds. Measured."""

NODES = 40
"""Number of entries that are kept for each neuron beside. Measured."""


def predicted(method: str, network: Network, rows: int, threat: ThreatModel, device: torch.device) -> Cost:
    """Predict one of auto-LiRPA's methods, with `rows` linear functions of the outputs for each input."""
    sizes = Sizes.of(network)
    work, most = 2.0 * sizes.below[-1], 0.0
    passes = [] if method == "IBP" or method == "forward" else [(len(network.hidden), rows)]
    if method in ("CROWN", "CROWN-Optimized"):
        passes += [(i, layer.outputs) for i, layer in enumerate(network.hidden) if i]
    for i, count in passes:
        most = max(most, float(BACKWARD * count * _field(network, i)))
        work += 2.0 * count * sizes.below[i]
    held = NODES * sizes.neurons + most
    if method.startswith("forward"):
        held += FORWARD * network.inputs * sizes.neurons
        work += 2.0 * network.inputs * sizes.below[-1]
    return Cost(
        fixed=BASE + BYTES * most,  # as if there were one input more: measured
        each=BYTES * held,
        work=EVALUATIONS * work,
        pace=lambda: pace(network, threat),
        advice="use engine: own, ibp, crown-ibp or lipschitz",
        device=device,
    )


Extent = tuple[int, ...] | None
"""Numbers of rows and columns of a patch; None: everything."""


def _field(network: Network, layer: int) -> int:
    """Return how many values of an earlier layer one neuron of a layer sees at most; the outputs see everything."""
    reached: dict[int, Extent] = {layer: (1, 1) if layer < len(network.hidden) else None}
    most = 1
    for i in range(layer, -1, -1):
        if i not in reached:
            continue
        for source, part in network.layers[i].maps.items():
            count, extent = _seen(part, reached[i])
            most = max(most, count)
            if source > 0:
                reached[source - 1] = _joined(reached[source - 1], extent) if source - 1 in reached else extent
    return most


def _seen(part: Map, extent: Extent) -> tuple[int, Extent]:
    """Return how many inputs of a map a patch of its outputs reads, and their patch."""
    if isinstance(part, Chain):
        most = 1
        for one in reversed(part.maps):
            count, extent = _seen(one, extent)
            most = max(most, count)
        return most, extent
    if isinstance(part, Sum):
        counts, extents = zip(*(_seen(one, extent) for one in part.maps), strict=True)
        joined: Extent = extents[0]
        for other in extents[1:]:
            joined = _joined(joined, other)
        return max(counts), joined
    if extent is not None and isinstance(part, Convolution) and part.axes == 2 and part.symmetric:
        sizes = zip(part.before[1:], extent, part.stride, part.kernel.shape[2:], part.dilation, strict=True)
        wider = tuple(min(n, (e - 1) * s + d * (k - 1) + 1) for n, e, s, k, d in sizes)
        return part.before[0] * math.prod(wider), wider
    return part.inputs, None


def _joined(one: Extent, other: Extent) -> Extent:
    """Return a patch that has room for both."""
    return None if one is None or other is None else tuple(map(max, one, other))
