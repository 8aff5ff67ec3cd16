"""Plain training."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from certbench.models.recipes.base import Objective, Step


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Cross entropy on the inputs as they are."""

    def loss(self, module: nn.Sequential, step: Step) -> Float[Tensor, ""]:
        """Compute the mean loss of a batch."""
        return functional.cross_entropy(module(step.x), step.y)
