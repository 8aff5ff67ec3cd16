"""Training of a diffusion model."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from certbench.models.architectures.denoisers import TIMES, NoisePredictor, signal
from certbench.models.recipes.base import Objective, Step


@dataclass(frozen=True)
class NoisePrediction(Objective):
    """Squared error of the noise predicted at uniformly drawn times (Ho, Jain and Abbeel, 2020, equation 14)."""

    def loss(self, module: nn.Sequential, step: Step) -> Float[Tensor, ""]:
        """Compute the mean loss of a batch, which does not depend on the classifier."""
        times = torch.randint(1, TIMES + 1, (len(step.x),), generator=step.generator)
        left = signal(times).to(step.x.dtype).view(-1, *[1] * (step.x.dim() - 1))
        noise = torch.randn(step.x.shape, generator=step.generator).to(step.x.dtype)
        points = left.sqrt() * (2 * step.x - 1) + (1 - left).sqrt() * noise
        model = module[0].model
        assert isinstance(model, NoisePredictor)
        return functional.mse_loss(model(points, times), noise)
