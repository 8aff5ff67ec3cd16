r"""Noise at several layers of one network, certified by the noise of any of them.

Let $\eta$ be the noise added at one layer, L a Lipschitz constant of everything before it, and $\omega$ all the other
noise, independent of $\eta$. For each $\omega$ the part before the layer is a map $T_\omega$ with that same L, since
noise at earlier layers shifts their outputs and a shift changes no Lipschitz constant. The part after it gives the set
$U_{\omega,c}$ of features with class c. So $g_c(x) = E_\omega\, u_\omega(x)$ with
$u_\omega(x) = P_\eta[T_\omega(x) + \eta \in U_{\omega,c}]$.

For the first of the noisy layers T does not depend on $\omega$, and $g_c$ smooths a function of the features with
values in [0, 1], so all radii hold. For a later layer the argument is averaged over $\omega$:

- Total variation: each $u_\omega$ changes by at most T(R), so their mean does.
- Odd heights (see `noise.base`): as x moves with unit speed, each $u_\omega$ changes at the rate $L F(u_\omega)$ at
  most. $F(t)$ is the largest integral of a score $-\partial_v \log q$ over sets of probability t. It is the integral
  over the score's largest values, so it is concave in t. By the symmetry of the noise it is the same for every v that
  counts, so that the supremum over v is concave, too. By Jensen's inequality $g_c$ changes at the rate
  $L\, E F(u_\omega) \le L F(E u_\omega) = L F(g_c)$ at most. The radius was derived from this alone.

Every layer's radius thus follows from the same two bounds of $g_A(x)$ and $g_B(x)$: the largest of them needs no
further confidence. Radii are not added: no argument here would justify it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from certbench.core.evidence import PlaceEvidence
from certbench.verifiers.smoothing.noise.families import Noise


@dataclass(frozen=True, eq=False)
class Place:
    """A layer behind which noise is added.

    Attributes:
        layer: name of the layer; None: the input.
        noise: noise that is added there.
        constants: Lipschitz constants of the part before it, from the threat model's norm to norms of its output.
        dimension: dimension of its output.
    """

    layer: str | None
    noise: Noise
    constants: Mapping[float, float]
    dimension: int

    def radius(self, p_lower: float, p_upper: float) -> float:
        """Return the largest radius by a norm of the features, over the constant that leads there; 0 for "abstain"."""
        best = 0.0
        for q, constant in self.constants.items():
            there = self.noise.radius(p_lower, p_upper, q, self.dimension)
            best = max(best, there if constant == 1 else there / constant * (1 - 1e-15) if constant else math.inf)
        return best if p_lower > p_upper else 0.0

    def evidence(self) -> PlaceEvidence:
        """Return the facts behind the radius, without the probabilities."""
        return PlaceEvidence(
            layer=self.layer,
            sigma=self.noise.sigma,
            scale=self.noise.scale(self.dimension),
            dimension=self.dimension,
            constants={f"{q:g}": bound for q, bound in self.constants.items()},
        )


@dataclass(frozen=True)
class Noises:
    """Independent noises of several layers, drawn one after the other from one stream, side by side.

    Attributes:
        parts: each noise, and the dimension of the layer's output.
    """

    parts: tuple[tuple[Noise, int], ...]

    def sample(self, stream: np.random.Generator, n: int, d: int) -> Float[np.ndarray, "n d"]:
        """Draw the first layer's noise, then the second's, and so on."""
        del d
        return np.concatenate([noise.sample(stream, n, size) for noise, size in self.parts], axis=1)

    def perturb(self, point: Float[Tensor, " d"], stream: np.random.Generator, n: int) -> Float[Tensor, "n d"]:
        """Return a point of the first layer, followed by zeros for the others, plus the draws."""
        return torch.from_numpy(self.sample(stream, n, len(point))).to(point.dtype).add_(point)


class Interleaved(nn.Module):
    """Parts of a network, as a function of the first part's input and of the noise for the input of each other."""

    def __init__(self, parts: Sequence[nn.Module], shapes: Sequence[tuple[int, ...]]) -> None:
        """Store the parts and the shapes of their inputs."""
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.shapes = tuple(shapes)

    def forward(self, x: Tensor) -> Tensor:
        """Add, run the part, and add again."""
        blocks = torch.split(x, [math.prod(shape) for shape in self.shapes], dim=1)
        z = torch.zeros((), dtype=x.dtype, device=x.device)
        for part, block, shape in zip(self.parts, blocks, self.shapes, strict=True):
            z = part(z + block.reshape(len(x), *shape))
        return z
