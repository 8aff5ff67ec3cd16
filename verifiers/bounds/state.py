"""The state that certifiers on the shared engine prepare, and CROWN's bounds, with which costlier methods begin."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.core.classifier import Classifier
from certbench.core.margins import Bounds, MarginState, clean_margin, margin_rows, tangent
from certbench.core.search import Evaluation, RadiusSearch, Start
from certbench.core.threat import ThreatModel
from certbench.networks.layers import Network
from certbench.networks.reading import logits_of, network, relu_network
from certbench.verifiers.bounds.backward import layer_bounds, lower_bounds
from certbench.verifiers.bounds.region import Region


@dataclass(frozen=True, eq=False)
class NetworkState(MarginState):
    """The classifier in float64, the threat model, and the network as layers.

    `program` is the precision of the given classifier, in which its user runs it.
    """

    network: Network
    program: torch.dtype = torch.float32

    @property
    def head(self) -> str | None:
        """The module's last function, if the network leaves it out."""
        return self.network.head

    @staticmethod
    def of(classifier: Classifier, threat: ThreatModel, relus: bool = True) -> "NetworkState":
        """Read the network; `relus` says whether it must be a ReLU network.

        Raises:
            UnsupportedError: it is no such network; the message names the layer.
        """
        read = relu_network(classifier) if relus else network(classifier)
        exact = logits_of(classifier, steps=bool(read.activations))
        return NetworkState(exact, threat, read, classifier.dtype)


def crown_bounds(
    state: NetworkState, x: Float[Tensor, "n ..."], rows: Float[Tensor, "n k outputs"], eps: Float[Tensor, " n"]
) -> Bounds:
    """Bound `rows` times the logits by CROWN."""
    region = Region(state.threat, x.flatten(1), eps)
    bounds = layer_bounds(state.network, region)
    return lower_bounds(state.network, region, rows, bounds)


def crown_radius(
    state: NetworkState,
    x: Float[Tensor, "n ..."],
    label: Int[Tensor, " n"],
    slack: Float[Tensor, " n"],
    search: RadiusSearch,
    guess: float = math.nan,
) -> Float[Tensor, " n"]:
    """Return the radii that CROWN certifies, where each margin must exceed its input's `slack`.

    Costlier methods begin there. With `Secant(evaluations=1)` and a guess, this is what one evaluation there proves.
    """
    rows = margin_rows(label, state.classifier.num_classes).to(x)
    floor = slack[:, None].expand(rows.shape[:2])

    def bound(index: Int[Tensor, " m"], eps: Float[Tensor, " m"]) -> Evaluation:
        bounds = crown_bounds(state, x[index], rows[index], eps)
        margin = (bounds.lower - floor[index]).amin(dim=1)
        crossing = bounds.crossing(state.threat, x[index].flatten(1), floor[index])
        return Evaluation(torch.where(margin.isfinite(), margin, -torch.inf), crossing)

    clean = clean_margin(state.classifier(x), label) - slack
    start = Start.at(state.threat, x.flatten(1), torch.full_like(slack, guess), tangent(state, x, label))
    return search.run(bound, clean, start).certified
