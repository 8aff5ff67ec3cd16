r"""Wong and Kolter's dual network (2018), extended to other norms and skip connections (Wong et al., 2018).

In the papers' symbols, for $\hat z_i = b_i + \sum_{j < i} W_{ij} z_j$, $z_1 = x$, $z_i = \max(\hat z_i, 0)$, and known
bounds $\ell \leq \hat z \leq u$, a lower bound of $c^T \hat z_k$ over the ball is

    J(x, c) = - sum_i nu_i^T b_i - x^T nu_hat_1 - eps ||nu_hat_1||_q + sum_i sum_{j in I_i} l_ij [nu_ij]_+,

    nu_k = -c,   nu_hat_j = sum_{i > j} W_ij^T nu_i,   nu_ij = nu_hat_ij on I+ (l >= 0), 0 on I- (u <= 0), and
    u_ij / (u_ij - l_ij) nu_hat_ij on I (the rest): the choice of alpha that makes the dual network linear.

Where a domain cuts the ball, its support function takes the place of the norm. The layers' bounds come from the same
dual with c = +-e_j, first layer first (Algorithm 1). It does not use the engine in `bounds`, which it cross-checks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certbench.core import ball
from certbench.core.certificate import Certificate
from certbench.core.margins import Bounds, margin_rows
from certbench.core.memory import Cost
from certbench.core.search import RadiusSearch, Secant
from certbench.errors import ConfigError
from certbench.networks.layers import Network
from certbench.networks.maps import unit_vectors
from certbench.numerics.rounding import TINY
from certbench.verifiers.bounds.backward import ENTRIES
from certbench.verifiers.bounds.costs import relaxed
from certbench.verifiers.bounds.proof import RelaxationProof, parallel, sufficient
from certbench.verifiers.bounds.region import LayerBounds, Region
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.linear.engines import Engined
from certbench.verifiers.linear.fast_lin import FastLin
from certbench.verifiers.linear.lirpa.graph import Lirpa


@dataclass(frozen=True)
class WongKolter(Engined):
    """Wong and Kolter's convex outer polytope through its dual network (2018), layer bounds by the same dual.

    auto-LiRPA computes the same bounds as Fast-Lin.
    """

    search: RadiusSearch = field(default_factory=Secant)

    relus: ClassVar[bool] = True
    version: ClassVar[int] = 2

    def lirpa(self) -> Lirpa:
        """Return Fast-Lin."""
        return FastLin().lirpa()

    def own_cost(self, state: NetworkState) -> Cost:
        """Predict a backward pass of the dual network for each neuron."""
        return relaxed(state, state.network)

    @torch.no_grad()
    def own(
        self,
        state: NetworkState,
        x: Float[Tensor, "n ..."],
        rows: Float[Tensor, "n k outputs"],
        eps: Float[Tensor, " n"],
    ) -> Bounds:
        """Return J(x, c) for every row c; without its term in eps it is a linear function of x."""
        region = Region(state.threat, x.flatten(1), eps)
        bounds = layerwise(state.network, region)
        dual = DualNetwork.of(state.network, rows, len(state.network.layers) - 1, bounds)
        at_x = dual.constant + dual.relus - _times(dual.nu_hat_1, region.x)
        return Bounds.linear(-dual.nu_hat_1, at_x, state.threat, region.x, eps)

    def witness(
        self, state: NetworkState, x: Float[Tensor, "1 ..."], label: Int[Tensor, " 1"], eps: Float[Tensor, " 1"]
    ) -> RelaxationProof:
        """Return the dual network's bounds and slopes; its lines below ReLUs are parallel to those above."""
        region = Region(state.threat, x.flatten(1), eps)
        bounds = layerwise(state.network, region)
        rows, slopes = margin_rows(label, state.classifier.num_classes).to(x), parallel(bounds)
        return RelaxationProof(bounds, slopes, sufficient(state.network, region, bounds, slopes, rows))


@dataclass(frozen=True, eq=False)
class DualNetwork:
    r"""The parts of J for k rows c; for -c all change sign but `relus` and `mirrored`, which change places.

    Attributes:
        nu_hat_1: coefficients that arrive at the input; one batch entry if no ReLU was met.
        constant: $-\sum_i \nu_i^T b_i$.
        relus: $\sum_i \sum_{j \in I_i} \ell_{ij} [\nu_{ij}]_+$.
        mirrored: $\sum_i \sum_{j \in I_i} \ell_{ij} [-\nu_{ij}]_+$.
    """

    nu_hat_1: Float[Tensor, "_ k d"]
    constant: Float[Tensor, "_ k"]
    relus: Float[Tensor, "_ k"]
    mirrored: Float[Tensor, "_ k"]

    @staticmethod
    def of(network: Network, c: Float[Tensor, "_ k outputs"], layer: int, bounds: LayerBounds) -> "DualNetwork":
        """Build it for rows c of the outputs of `network.layers[layer]`, from bounds of the layers before it."""
        nu = -c
        constant = torch.zeros_like(c[..., 0])
        relus, mirrored = constant, constant
        nu_hat = {0: c.new_zeros(1, c.shape[1], network.inputs)}  # by source, as far as it has arrived
        for i in range(layer, -1, -1):
            if i < layer:
                if i + 1 not in nu_hat:
                    continue  # a layer that this one does not use
                lower, upper = bounds.lower[i][:, None], bounds.upper[i][:, None]
                nu = slope(lower, upper) * nu_hat.pop(i + 1)
                unstable = torch.where((lower < 0) & (upper > 0), lower, 0.0)[:, 0]
                relus = relus + _times(nu.clamp(min=0), unstable)
                mirrored = mirrored + _times((-nu).clamp(min=0), unstable)
            part = network.layers[i]
            constant = constant - nu @ part.bias
            for source, step in part.maps.items():
                arrived = step.transpose(nu.flatten(0, 1)).view(*nu.shape[:2], step.inputs)
                nu_hat[source] = nu_hat[source] + arrived if source in nu_hat else arrived
        return DualNetwork(nu_hat[0], constant, relus, mirrored)

    def ends(self, region: Region) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
        """Return J(x, c) and -J(x, -c), the bounds below and above."""
        threat, n = region.threat, len(region)
        at_x = self.constant - _times(self.nu_hat_1, region.x)
        if threat.domain is None:
            loss = region.eps[:, None] * ball.length(self.nu_hat_1, threat.q)
            gain = loss
        else:
            down, up = ball.rooms(threat, region.x, region.eps)
            nu_hat_1 = self.nu_hat_1.expand(n, -1, -1)
            loss = ball.support(nu_hat_1, threat.p, region.eps, down, up)
            gain = ball.support(nu_hat_1, threat.p, region.eps, up, down)
        return at_x - loss + self.relus, at_x + gain - self.mirrored


def slope(lower: Float[Tensor, "..."], upper: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return 1 on I+, 0 on I-, u / (u - l) on I; NaN bounds belong to none of these and give NaN.

    On I any larger slope is sound, too. It is 1 where u - l overflows, and raised where it would underflow.
    """
    settled = torch.where(lower >= 0, 1.0, torch.where(upper <= 0, 0.0, torch.nan)).to(lower)
    width = upper - lower
    chord = torch.where(width.isinf(), 1.0, (upper / width).clamp(min=TINY))
    return torch.where((lower < 0) & (upper > 0), chord, settled)


@torch.no_grad()
def layerwise(network: Network, region: Region) -> LayerBounds:
    """Bound all hidden layers, each by the dual with the bounds before it (Wong and Kolter, 2018, Algorithm 1)."""
    bounds = LayerBounds((), (), "wong-kolter")
    for i, layer in enumerate(network.hidden):
        widest = max([network.inputs, *(before.outputs for before in network.layers[: i + 1])])
        size = max(1, ENTRIES // (max(len(region), 1) * widest))
        some = unit_vectors(layer.outputs, size, region.x.device, region.x.dtype)
        ends = [DualNetwork.of(network, rows[None], i, bounds).ends(region) for rows in some]
        lower, upper = (torch.cat(side, dim=1) for side in zip(*ends, strict=True))
        bounds = LayerBounds((*bounds.lower, lower), (*bounds.upper, upper), bounds.method)
    return bounds


@torch.no_grad()
def estimated_l1(
    network: Network, bounds: LayerBounds, layer: int, projections: int, seed: int
) -> Float[Tensor, "_ size"]:
    """Return an ESTIMATE of ||nu_hat_1||_1 for every c = e_j of a layer: no bound, so never part of a certificate.

    The median modulus of Cauchy random projections (Li et al., 2007; Wong et al., 2018, section 3.2). The projections
    go forwards through the dual network, which is linear, so that all neurons share them.

    Args:
        network: the network.
        bounds: bounds of the hidden layers before `layer`.
        layer: index in `network.layers`.
        projections: number of projections; the relative error falls like its inverse square root.
        seed: seed of the draws.

    Returns:
        One row per input, or a single one for all where no ReLU comes before.
    """
    if not 0 <= layer < len(network.layers):
        raise ConfigError(f"the network has layers 0 to {len(network.layers) - 1}, not {layer}", ("layer",))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.empty(1, projections, network.inputs, dtype=torch.float64).cauchy_(generator=generator)
    drawn = drawn.to(network.layers[0].bias)
    sources = [drawn]
    for i, part in enumerate(network.layers[: layer + 1]):
        z = drawn.new_zeros(1, projections, part.outputs)
        for source, step in part.maps.items():
            h = sources[source]
            z = z + step.forward(h.flatten(0, 1)).view(*h.shape[:2], step.outputs)
        if i < layer:
            sources.append(slope(bounds.lower[i], bounds.upper[i])[:, None] * z)
    return z.abs().median(dim=1).values


@dataclass(frozen=True, eq=False)
class Cascade:
    """The answers of a cascade of classifiers.

    Attributes:
        prediction: class named by the stage that answers.
        certified: whether that stage keeps its prediction in the ball of radius eps.
        stage: its index.
    """

    prediction: Int[Tensor, " n"]
    certified: Bool[Tensor, " n"]
    stage: Int[Tensor, " n"]


def cascade(certificates: Sequence[Certificate], eps: float) -> Cascade:
    """Run the cascade of Wong et al. (2018, section 3.3): the first stage that certifies its prediction at eps answers.

    Where none does, the last stage's prediction stands, uncertified. This is the paper's figure of merit and no
    `Certificate`: another input of the ball may be answered by another stage, so the cascade itself, run on
    perturbed inputs, can change its answer inside a ball that is certified here.

    Args:
        certificates: certificates of each stage, for the same inputs.
        eps: the radius.
    """
    if not certificates or len({len(certificate) for certificate in certificates}) != 1:
        raise ConfigError("a cascade needs the certificates of one stage or more, all for the same inputs")
    holds = torch.stack([certificate.radius >= eps for certificate in certificates])
    first = torch.where(holds.any(dim=0), holds.to(torch.uint8).argmax(dim=0), len(certificates) - 1)
    predictions = torch.stack([certificate.prediction for certificate in certificates])
    return Cascade(predictions.gather(0, first[None])[0], holds.gather(0, first[None])[0], first)


def _times(a: Float[Tensor, "_ k m"], b: Float[Tensor, "n m"]) -> Float[Tensor, "n k"]:
    """Return a . b, row by row."""
    return (a * b[:, None]).sum(dim=-1) if len(a) != len(b) else (a @ b[..., None]).squeeze(-1)
