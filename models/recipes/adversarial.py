"""Adversarial training."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from certbench.errors import ConfigError
from certbench.models.recipes.base import Objective, Step
from certbench.models.recipes.lipschitz_margin import row_norms


@dataclass(frozen=True)
class Adversarial(Objective):
    """Cross entropy where projected gradient ascent ends, in an L2 or Linf ball (Madry et al., 2018, section 2).

    Attributes:
        p: norm of the ball, 2 or inf.
        eps: radius of the ball, which is clipped to [0, 1].
        steps: number of steps of the ascent, each of length 2.5 eps / steps, after a random start.
    """

    p: float
    eps: float
    steps: int = 10

    def __post_init__(self) -> None:
        """Refuse norms for which no step of the ascent is defined."""
        if self.p not in (2.0, math.inf):
            raise ConfigError(f"no adversarial training in norm {self.p!r}; write 2 or inf", ("p",))

    def loss(self, module: nn.Sequential, step: Step) -> Float[Tensor, ""]:
        """Compute the mean loss of a batch."""
        return functional.cross_entropy(module(self.ascend(module, step)), step.y)

    def ascend(self, module: nn.Sequential, step: Step) -> Float[Tensor, "n ..."]:
        """Return the points of a batch at which the ascent ends; parameters get no gradient from it."""
        noise = torch.rand(step.x.shape, generator=step.generator, dtype=step.x.dtype)
        points = self._within(step.x, step.x + self.eps * (2 * noise - 1))
        for _ in range(self.steps):
            points.requires_grad_()
            (gradient,) = torch.autograd.grad(functional.cross_entropy(module(points), step.y), points)
            direction = gradient.sign() if self.p == math.inf else gradient / row_norms(gradient)
            points = self._within(step.x, points.detach() + 2.5 * self.eps / self.steps * direction)
        return points

    def _within(self, x: Float[Tensor, "n ..."], points: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        change = points - x
        if self.p == math.inf:
            change = change.clamp(-self.eps, self.eps)
        else:
            change = change * (self.eps / row_norms(change)).clamp(max=1)
        return (x + change).clamp(0, 1)
