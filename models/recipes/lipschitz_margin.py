"""Lipschitz-margin training."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from certbench.core.threat import L2, ThreatModel
from certbench.errors import ConfigError
from certbench.models.recipes.base import CertifiedObjective, Step
from certbench.networks.normalise import Normalise


@dataclass(frozen=True)
class LipschitzMargin(CertifiedObjective):
    r"""Cross entropy of logits after each wrong one is raised by all that it can gain in an L2 ball.

    Lipschitz-margin training (Tsuzuku, Sato and Sugiyama, 2018), with a constant per pair of classes (Leino, Wang and
    Fredrikson, 2021): logit j may gain $\epsilon K_{yj}$ on logit y, where $K_{yj}$ is the norm of the difference of
    their two last rows, times the exact spectral norms of the layers below.

    Attributes:
        eps: radius of the ball.
        warmup: share of the steps before the ball starts to grow.
        ramp: share of the steps during which it grows, linearly.
    """

    eps: float
    warmup: float = 0.1
    ramp: float = 0.5

    def loss(self, module: nn.Sequential, step: Step) -> Float[Tensor, ""]:
        """Compute the mean loss of a batch."""
        grown = step.grown(self.warmup, self.ramp)
        return functional.cross_entropy(-self.margins(module, step.x, step.y, self.eps * grown), step.y)

    def claim(self) -> tuple[ThreatModel, float]:
        """Return threat model and radius of the certificate."""
        return L2, self.eps

    def margins(
        self, module: nn.Sequential, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], eps: float
    ) -> Float[Tensor, "n classes"]:
        """Compute the margins at x, less the most that the ball can take away."""
        logits: Tensor = module(x)
        gain = row_differences(module, y)[0].norm(dim=2) * lipschitz_constant(list(module)[:-1])
        margins: Tensor = logits.gather(1, y[:, None]) - logits - eps * gain
        return margins


def lipschitz_constant(layers: Iterable[nn.Module]) -> Float[Tensor, ""]:
    """Multiply the layers' exact L2 Lipschitz constants.

    Raises:
        ConfigError: a layer is neither dense, nor a ReLU, nor a reshaping.
    """
    constant = torch.ones(())
    for layer in layers:
        match layer:
            case nn.ReLU() | nn.Flatten():
                pass
            case Normalise():
                constant = constant / layer.std.abs().min()
            case nn.Linear():
                constant = constant * torch.linalg.matrix_norm(layer.weight, 2)
            case _:
                raise ConfigError(f"no Lipschitz constant for {layer}")
    return constant


def row_norms(x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    """Compute the L2 norms of the rows, never 0, in a shape that the rows can be divided by."""
    norms: Tensor = x.flatten(1).norm(dim=1).clamp(min=1e-12)
    return norms.view(-1, *[1] * (x.dim() - 1))


def row_differences(
    module: nn.Sequential, y: Int[Tensor, " n"]
) -> tuple[Float[Tensor, "n classes width"], Float[Tensor, "n classes"]]:
    """Return weight and bias of logit y minus each logit, as functions of the last layer's input."""
    last = module[-1]
    if not isinstance(last, nn.Linear):
        raise ConfigError(f"the last layer must be linear, not {last}")
    return last.weight[y, None] - last.weight, last.bias[y, None] - last.bias
