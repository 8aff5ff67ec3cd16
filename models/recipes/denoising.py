r"""Pre-processors before a classifier that was never trained on noise, and the objectives that train them.

Denoised smoothing (Salman, Sun, Yang, Kapoor and Kolter, 2020) and its form by diffusion models (Carlini, Tramèr,
Dvijotham, Rice, Sun and Kolter, 2023). Denoiser and classifier together are the base classifier. The noise comes first,
so a certifier of any classifier under noise certifies this one, and certificates hold even if the denoiser is bad. The
base classifier is a sequence of the pre-processor and the classifier's layers, which are not trained again.

A diffusion model knows inputs at times t = 1, ..., T as
$x_t = \sqrt{\bar\alpha_t} x_0 + \sqrt{1 - \bar\alpha_t} N(0, I)$ with $x_0 = 2x - 1$ in [-1, 1], and predicts the
noise in them. The noise of smoothing is $2\sigma$ in these units, and belongs to the time at which
$\sqrt{(1 - \bar\alpha_t) / \bar\alpha_t} = 2\sigma$.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from certbench.models.recipes.base import Objective, Step


@dataclass(frozen=True)
class Denoising(Objective):
    """Squared error of the denoised input under fresh Gaussian noise (Salman et al., 2020, section 3, MSE).

    Attributes:
        sigma: standard deviation of the noise, in the units of the input.
    """

    sigma: float

    def loss(self, module: nn.Sequential, step: Step) -> Float[Tensor, ""]:
        """Compute the mean loss of a batch, which does not depend on the classifier."""
        noise = torch.randn(step.x.shape, generator=step.generator)
        return functional.mse_loss(module[0](step.x + self.sigma * noise), step.x)
