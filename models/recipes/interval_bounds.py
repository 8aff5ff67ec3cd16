"""Training with interval bounds."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from certbench.core.threat import Linf, ThreatModel
from certbench.errors import ConfigError
from certbench.models.recipes.base import CertifiedObjective, Step
from certbench.models.recipes.lipschitz_margin import row_differences
from certbench.networks.normalise import Normalise


@dataclass(frozen=True)
class IntervalBounds(CertifiedObjective):
    """Cross entropy mixed with that of worst-case logits by interval bounds, in Linf (Gowal et al., 2018, section 3).

    Attributes:
        eps: radius of the ball, which is clipped to [0, 1].
        warmup: share of the steps before the ball starts to grow.
        ramp: share of the steps during which the ball and the weight of the worst case grow linearly.
        worst: weight of the worst case after that.
    """

    eps: float
    warmup: float = 0.1
    ramp: float = 0.5
    worst: float = 0.5

    def loss(self, module: nn.Sequential, step: Step) -> Float[Tensor, ""]:
        """Compute the mean loss of a batch."""
        grown = step.grown(self.warmup, self.ramp)
        usual = functional.cross_entropy(module(step.x), step.y)
        worst = functional.cross_entropy(-self.margins(module, step.x, step.y, self.eps * grown), step.y)
        return torch.lerp(usual, worst, self.worst * grown)

    def claim(self) -> tuple[ThreatModel, float]:
        """Return threat model and radius of the certificate."""
        return Linf.within(0, 1), self.eps

    def margins(
        self, module: nn.Sequential, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], eps: float
    ) -> Float[Tensor, "n classes"]:
        """Compute interval bounds up to the last layer, which is merged with the differences of logits."""
        lower, upper = interval_bounds(list(module)[:-1], (x - eps).clamp(min=0), (x + eps).clamp(max=1))
        weight, bias = row_differences(module, y)
        center, spread = (lower + upper) / 2, (upper - lower) / 2
        return torch.einsum("nji,ni->nj", weight, center) + bias - torch.einsum("nji,ni->nj", weight.abs(), spread)


def interval_bounds(
    layers: Iterable[nn.Module], lower: Float[Tensor, "n ..."], upper: Float[Tensor, "n ..."]
) -> tuple[Float[Tensor, "n ..."], Float[Tensor, "n ..."]]:
    """Bound every output over a box of inputs, layer by layer (Gowal et al., 2018, section 3.1).

    Raises:
        ConfigError: a layer is of no kind that `architectures` uses.
    """
    for layer in layers:
        center, spread = (lower + upper) / 2, (upper - lower) / 2
        match layer:
            case nn.ReLU() | nn.Flatten():
                lower, upper = layer(lower), layer(upper)
                continue
            case Normalise():
                center, spread = layer(center), spread / layer.std.abs()
            case nn.Linear():
                center, spread = layer(center), functional.linear(spread, layer.weight.abs())
            case nn.Conv2d(padding_mode="zeros"):
                center, spread = (
                    layer(center),
                    functional.conv2d(
                        spread, layer.weight.abs(), None, layer.stride, layer.padding, layer.dilation, layer.groups
                    ),
                )
            case _:
                raise ConfigError(f"no interval bounds for {layer}")
        lower, upper = center - spread, center + spread
    return lower, upper
