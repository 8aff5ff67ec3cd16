r"""Products of spectral norms without the neurons that a ball leaves at zero (Huang et al., 2021).

Where neurons of layer i have slopes in $[0, b_i]$ (0 for those that are never active, 1 for those that always are),
the Jacobian of a margin is $R S_{L-1} W_{L-1} \cdots S_1 W_1$ with $S_i = B_i S_i' B_i$, $\|S_i'\|_2 \leq 1$ and
$B_i = \operatorname{diag}(b_i)^{1/2}$, so that its norm is at most

$$\|R B_{L-1}\|_2 \, \|B_{L-1} W_{L-1} B_{L-2}\|_2 \cdots \|B_2 W_2 B_1\|_2 \, \|B_1 W_1\|_{p \to 2}.$$

Slopes of tangents are 0 or 1, and B is a mask. Slopes of chords may lie between. Avant and Morgansen (2023) scale the
rows of each layer by them; here one half goes to either side, which gave 5% larger radii on mlp-plain.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.core import ball
from certbench.core.claims import Guarantee
from certbench.core.classifier import Classifier
from certbench.core.ranges import PositiveInt
from certbench.core.search import RadiusSearch, Secant
from certbench.core.threat import ThreatModel
from certbench.errors import UnsupportedError
from certbench.networks.maps import Map
from certbench.numerics.rounding import gamma
from certbench.numerics.spectral import DENSE, SIDE, spectra
from certbench.verifiers.bounds.region import LayerBounds, Region
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.lipschitz.local import LocalLipschitz, Steepness


@dataclass(frozen=True)
class MaskedProduct(LocalLipschitz):
    """The product of layers' spectral norms without inactive neurons (Huang et al., 2021), each norm proved.

    For plain chains of layers that fit into matrices of at most `DENSE` entries and `SIDE` rows or columns.
    L1 and Linf begin with the first layer's norm from there to the 2-norm.

    Attributes:
        chords: whether rows are scaled by the steepest chords from the input (Avant and Morgansen, 2023).
        shells: number of parts of the ball in the radial integral; 1 for no integral.
        rounding_safe: whether rounding errors are counted, also those of the float program.
    """

    chords: bool = False
    shells: PositiveInt = 1
    rounding_safe: bool = False
    search: RadiusSearch = field(default_factory=Secant)

    guarantee: ClassVar[Guarantee] = Guarantee.SOUND

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> NetworkState:
        """Read the network.

        Raises:
            UnsupportedError: it is no chain of layers with ReLUs between, or one has no small matrix.
        """
        state = NetworkState.of(classifier, threat)
        for i, part in enumerate(state.network.chain()[:-1]):
            if part.inputs * part.outputs > DENSE or min(part.inputs, part.outputs) > SIDE:
                raise UnsupportedError(
                    f"layer {i} of {classifier.name} is a {part.outputs} x {part.inputs} matrix, too large for a norm "
                    "per input"
                )
        return self.fitting(state)

    def single(self, state: NetworkState) -> NetworkState:
        """Refuse: the norms are proved with the error bounds of float64."""
        raise UnsupportedError("its norms are proved in float64 alone")

    def steepness(
        self, state: NetworkState, region: Region, rows: Float[Tensor, "n k outputs"], bounds: LayerBounds
    ) -> Steepness:
        """Bound the steepness by the product of the norms."""
        *maps, last = state.network.chain()
        layers, slopes = state.network.layers, self.slopes(state, region, bounds)
        pulled, moduli = _pull(last, rows), _pull(layers[-1].paths[len(maps)], rows.abs())
        if not maps:
            return Steepness.between(pulled, pulled, region)
        reach = pulled.abs() + gamma(layers[-1].roundings + rows.shape[2]) * moduli
        halves = [high.sqrt() for high in slopes.high]
        slope = ball.length(reach * halves[-1][:, None], 2.0)
        for i, part in enumerate(maps):
            # Folding rounds entries; the length of what rows may be off by bounds the norm to 2, whatever p.
            weight, error = part.matrix(), gamma(layers[i].roundings + 2) * layers[i].paths[i].matrix()
            found = []
            for inputs in torch.split(torch.arange(len(region)), max(1, DENSE // weight.numel())):
                scaled = halves[i][inputs, :, None] * weight
                scaled = scaled * halves[i - 1][inputs, None] if i else scaled
                found.append(spectra(scaled) if i else _first(scaled, region.threat.p))
            slope = slope * (torch.cat(found) + ball.length(error.sum(dim=1), 2.0))[:, None]
        return Steepness(slope)


def _pull(step: Map, rows: Float[Tensor, "n k outputs"]) -> Float[Tensor, "n k inputs"]:
    return step.transpose(rows.flatten(0, 1)).view(*rows.shape[:2], step.inputs)


def _first(matrices: Float[Tensor, "n m d"], p: float) -> Float[Tensor, " n"]:
    r"""Return upper bounds of the norms from p to 2; from inf, the least of three, as `operator_norms.box_norm`.

    $\sqrt d \|A\|_2$; $\||A| 1\|_2$; and $\|A S^{-1}\|_2 \|s\|_2$ with $S = \operatorname{diag}(s)$ and
    $s_i^2 = \sum_j |A^T A|_{ij}$.
    """
    if p == 2:
        return spectra(matrices)
    if p == 1:
        return ball.length(matrices.mT, 2.0).amax(dim=1)
    s = (matrices.mT @ matrices).abs().sum(dim=2).sqrt()
    s = s.clamp(min=1e-8 * s.amax(dim=1, keepdim=True)).clamp(min=1e-150)
    return torch.stack(
        [
            math.sqrt(matrices.shape[2]) * spectra(matrices),
            ball.length(matrices.abs().sum(dim=2), 2.0),
            spectra(matrices / s[:, None]) * ball.length(s, 2.0),
        ]
    ).amin(dim=0)
