"""Building blocks of training recipes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from certbench.core.threat import ThreatModel


@dataclass(frozen=True, eq=False)
class Step:
    """One batch during training.

    Attributes:
        x: inputs in [0, 1].
        y: labels.
        progress: share of all steps already taken, for schedules.
        generator: source of every random draw.
    """

    x: Float[Tensor, "n ..."]
    y: Int[Tensor, " n"]
    progress: float
    generator: torch.Generator

    def grown(self, warmup: float, ramp: float) -> float:
        """Return a schedule's value: 0 for a share `warmup` of the steps, then linear up to 1 during a share `ramp`."""
        return min(max((self.progress - warmup) / ramp, 0.0), 1.0)


class Objective(ABC):
    """A loss that a recipe minimises. Subclasses are frozen dataclasses; their fields are the settings on a card."""

    @abstractmethod
    def loss(self, module: nn.Sequential, step: Step) -> Float[Tensor, ""]:
        """Compute the mean loss of a batch."""


class CertifiedObjective(Objective):
    """An objective that trains for its own certificate, so that a card can say how often the certificate holds."""

    @abstractmethod
    def claim(self) -> tuple[ThreatModel, float]:
        """Return threat model and radius of the certificate."""

    @abstractmethod
    def margins(
        self, module: nn.Sequential, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], eps: float
    ) -> Float[Tensor, "n classes"]:
        """Compute lower bounds of logit y minus each logit, over the ball of radius eps; 0 at y itself."""

    def certified(self, module: nn.Sequential, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Say whether the certificate proves label y."""
        margins = self.margins(module, x, y, self.claim()[1])
        return ((margins > 0) | functional.one_hot(y, margins.shape[1]).bool()).all(dim=1)
