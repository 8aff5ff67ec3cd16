"""Questions to linear bounds, and fast-lin by hand."""

import math

import torch
from torch import Tensor

from certbench import L1, L2, Linf, ThreatModel
from certbench.core.margins import margin_rows
from certbench.networks.layers import Network
from certbench.testing import inputs, network
from certbench.verifiers.bounds.backward import backward
from certbench.verifiers.bounds.lines import upper_line
from certbench.verifiers.bounds.region import LayerBounds, Region
from certbench.verifiers.bounds.state import NetworkState

THREATS = [L1, L2, Linf, L1.within(0, 1), L2.within(0, 1), Linf.within(0, 1)]


def question(kind: str, threat: ThreatModel, n: int = 6) -> tuple[NetworkState, Tensor, Tensor, Tensor]:
    """A network, inputs, their margins and radii at which some ReLUs are unstable."""
    classifier, x = network(kind), inputs(n)
    rows = margin_rows(classifier.double()(x).argmax(dim=1), 4)
    eps = torch.linspace(0.02, 0.3, n, dtype=torch.float64) * (1 if threat.p == math.inf else 3)
    return NetworkState.of(classifier, threat), x, rows, eps


def fast_lin(
    net: Network, region: Region, rows: Tensor, bounds: LayerBounds | None = None
) -> tuple[Tensor, LayerBounds]:
    """The engine's backward bounds with slope u / (u - l) everywhere, intervals left out unless `bounds` are given."""

    def below(rows: Tensor, layer: int, bounds: LayerBounds) -> Tensor:
        slopes = [upper_line(low, up)[0][:, None] for low, up in zip(bounds.lower, bounds.upper, strict=True)]
        linear = backward(net, rows, layer, bounds.upto(layer), slopes)
        return region.minimum(linear.a, linear.b)

    if bounds is None:
        bounds = LayerBounds((), (), "fast-lin")
        for i, layer in enumerate(net.hidden):
            eye = torch.eye(layer.outputs, dtype=torch.float64).expand(len(region), -1, -1)
            low, up = below(eye, i, bounds), -below(-eye, i, bounds)
            bounds = LayerBounds((*bounds.lower, low), (*bounds.upper, up), "fast-lin")
    return below(rows, len(net.hidden), bounds), bounds
