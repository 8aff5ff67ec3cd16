r"""Proofs of relaxations, for the exporter of certificates: bounds of the layers and slopes below ReLUs, nothing else.

By Salman et al. (2019) every dual solution of the LP relaxation is a choice of such slopes, so this is what IBP, CROWN,
Wong and Kolter's dual and the LP have in common. `certbench.checker` derives the bounds from it anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.networks.layers import Network
from certbench.verifiers.bounds.backward import backward
from certbench.verifiers.bounds.lines import lower_slope, upper_line
from certbench.verifiers.bounds.optimise import optimise
from certbench.verifiers.bounds.region import LayerBounds, Region


@dataclass(frozen=True, eq=False)
class RelaxationProof:
    """A proof of the margins of one input over one ball.

    Attributes:
        bounds: bounds of the hidden layers.
        inner: lower slopes with which later layers were bounded, by hidden layer; None: by interval arithmetic.
        slopes: lower slopes below the margins, by hidden layer, one row for all or one per margin; None: likewise.
    """

    bounds: LayerBounds
    inner: Sequence[Float[Tensor, " _size"]] | None
    slopes: Sequence[Float[Tensor, "_k _size"]] | None


def adaptive(bounds: LayerBounds) -> list[Float[Tensor, " _size"]]:
    """Return CROWN's lower slopes: 1 where u > -l, else 0."""
    return [lower_slope(low, high, None)[0] for low, high in zip(bounds.lower, bounds.upper, strict=True)]


def parallel(bounds: LayerBounds) -> list[Float[Tensor, " _size"]]:
    """Return the lower slopes of Fast-Lin and of Wong and Kolter: u / (u - l), the slope of the line above."""
    return [upper_line(low, high)[0][0] for low, high in zip(bounds.lower, bounds.upper, strict=True)]


def sufficient(
    network: Network,
    region: Region,
    bounds: LayerBounds,
    slopes: Sequence[Tensor],
    rows: Float[Tensor, "1 k outputs"],
) -> list[Float[Tensor, "_k _size"]]:
    """Return the given slopes if they prove `rows` of the outputs positive, else optimised ones; any slopes are sound.

    They may fail to, because a radius may rest on a bound over another ball, or on another engine's bounds of layers.
    """
    given = [s[None] for s in slopes]
    linear = backward(network, rows, len(network.hidden), bounds, [s[None] for s in given])
    if not given or bool((region.minimum(linear.a, linear.b) > 0).all()):
        return given
    alpha = optimise(network, region, bounds, rows).choice.alpha[0].clamp(0, 1)
    return list(torch.split(alpha, [low.shape[1] for low in bounds.lower], dim=1))
