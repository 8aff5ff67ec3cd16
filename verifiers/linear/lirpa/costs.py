"""Predictions of the memory and the time that auto-LiRPA needs for one input, from the sizes of a network.

It holds the coefficients of all neurons of a layer at once, for lower and for upper bounds. Every tensor is a matrix.
"""

import torch

from certbench.core.memory import Cost
from certbench.core.threat import ThreatModel
from certbench.networks.layers import Network
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
        widest = max(network.inputs, *(layer.outputs for layer in network.layers[: i + 1]))
        most = max(most, float(BACKWARD * count * widest))
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
