"""Questions to local Lipschitz constants: a network, its slopes on a ball, and what they allow."""

import itertools
import math
from functools import cache

import torch
from torch import Tensor, nn

from certbench import L1, L2, Classifier, Linf, ThreatModel
from certbench.core.margins import margin_rows
from certbench.networks.layers import Network
from certbench.testing import inputs, network
from certbench.verifiers.bounds.backward import layer_bounds
from certbench.verifiers.bounds.region import Region
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.lipschitz.fast_lip import FastLip, RecurJac
from certbench.verifiers.lipschitz.local import LocalLipschitz, Slopes
from certbench.verifiers.lipschitz.masked_product import MaskedProduct

NORMS = [L1, L2, Linf]
KINDS = ["mlp", "cnn", "residual", "skip"]
PLAIN: list[LocalLipschitz] = [FastLip(), RecurJac(), MaskedProduct()]
CHORDS: list[LocalLipschitz] = [FastLip(chords=True, gram=True), RecurJac(chords=True), MaskedProduct(chords=True)]


def short(certifier: LocalLipschitz) -> str:
    return f"{type(certifier).__name__}-{'chords' if certifier.chords else 'tangents'}"


def mlp(*sizes: int, seed: int = 0) -> Classifier:
    """A random network with hidden layers of these sizes between, gains such that slopes matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    for layer in layers[::2]:
        layer.weight.data.mul_(2)  # type: ignore[union-attr, operator]
    return Classifier(nn.Sequential(*layers[:-1]).eval(), (sizes[0],), sizes[-1], f"mlp-{seed}")


class Skip(nn.Module):
    """A sum that skips a ReLU; `network("residual")` has one that does not, and folds into a plain chain."""

    def __init__(self, from_input: bool) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.from_input = from_input

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        z = torch.relu(self.first(x))
        return self.last((x if self.from_input else z) + torch.relu(self.inner(z)))


def net(kind: str, from_input: bool = False) -> Classifier:
    if kind != "skip":
        return network(kind)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return Classifier(Skip(from_input).eval(), (1, 4, 4), 4, "skip")


class Question:
    """A network, inputs, rows of margins and radii at which many ReLUs are open."""

    def __init__(self, classifier: Classifier, x: Tensor, threat: ThreatModel, scale: float = 1.0) -> None:
        self.x, self.state, classes = x, NetworkState.of(classifier, threat), classifier.num_classes
        self.rows = margin_rows(classifier.double()(x).argmax(dim=1), classes)
        widest = {1.0: 0.8, 2.0: 0.4, math.inf: 0.1}[threat.p] * scale
        self.eps = torch.linspace(widest / 8, widest, len(x), dtype=torch.float64)
        self.region = Region(threat, x.flatten(1), self.eps)
        self.bounds = layer_bounds(self.state.network, self.region)

    def slope(self, certifier: LocalLipschitz) -> Tensor:
        with torch.no_grad():
            return certifier.steepness(self.state, self.region, self.rows, self.bounds).slope

    def slopes(self, chords: bool) -> Slopes:
        if chords:
            return Slopes.chords(self.bounds, self.state.network, self.region.x)
        return Slopes.tangents(self.bounds)


@cache
def question(kind: str, threat: ThreatModel) -> Question:
    asked = Question(net(kind), inputs(6), threat, 3.0 if kind == "skip" else 1.0)
    assert all(bool(asked.bounds.unstable(i).any()) for i in range(len(asked.bounds.lower)))
    return asked


def jacobian(net: Network, slopes: list[Tensor]) -> Tensor:
    """Return the Jacobians of all logits for given slopes: (m, outputs, inputs)."""
    m = len(slopes[0])
    sources = [torch.eye(net.inputs, dtype=torch.float64).expand(m, -1, -1)]
    for i, layer in enumerate(net.layers):
        z = sum(
            part.forward(sources[source].transpose(1, 2).flatten(0, 1)).view(m, net.inputs, -1).transpose(1, 2)
            for source, part in layer.maps.items()
        )
        sources.append(slopes[i][..., None] * z if i < len(slopes) else z)
    return sources[-1]
