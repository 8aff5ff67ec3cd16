"""Training of a denoiser for stability."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from certbench.models.recipes.base import Objective, Step


@dataclass(frozen=True)
class Stability(Objective):
    """Cross entropy under fresh Gaussian noise of the label without noise or denoiser (Salman et al., 2020, Stab).

    Attributes:
        sigma: standard deviation of the noise, in the units of the input.
    """

    sigma: float

    def loss(self, module: nn.Sequential, step: Step) -> Float[Tensor, ""]:
        """Compute the mean loss of a batch, which does not depend on the true labels."""
        with torch.no_grad():
            labels = module[1:](step.x).argmax(dim=1)
        noise = torch.randn(step.x.shape, generator=step.generator)
        return functional.cross_entropy(module(step.x + self.sigma * noise), labels)
