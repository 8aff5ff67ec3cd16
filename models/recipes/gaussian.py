"""Training with Gaussian noise."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from certbench.models.recipes.base import Objective, Step


@dataclass(frozen=True)
class GaussianNoise(Objective):
    """Cross entropy under fresh Gaussian noise, not clipped, as smoothing will add (Cohen et al., 2019, section 3.3).

    Attributes:
        sigma: standard deviation of the noise, in the units of the input.
    """

    sigma: float

    def loss(self, module: nn.Sequential, step: Step) -> Float[Tensor, ""]:
        """Compute the mean loss of a batch."""
        noise = torch.randn(step.x.shape, generator=step.generator)
        return functional.cross_entropy(module(step.x + self.sigma * noise), step.y)
