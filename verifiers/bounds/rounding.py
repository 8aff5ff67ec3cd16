r"""A-priori rounding errors: of a network's own evaluation, and of linear bounds computed in float64 (Higham, 2002).

A sum of n products is off by at most $\gamma_n = n u / (1 - n u)$ times the sum of the moduli, in any order of
summation, with or without fused operations. Carried through the layers, ReLU being exact and 1-Lipschitz, this bounds
how far the float program can be from the network in real arithmetic (Jia and Rinard, 2020, and Zombori et al., 2021,
fool verifiers that ignore it). Not covered: convolutions by transforms (Winograd, FFT), which multiply other numbers
than the weights; reduced precision (TF32, bfloat16); underflow of this analysis itself, below 1e-300; overflow of the
program between affine layers that follow one another without a ReLU.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.errors import NumericalError
from certbench.networks.folding import UNDERFLOW
from certbench.networks.layers import Network
from certbench.networks.piecewise_linear import RELU
from certbench.numerics.rounding import gamma
from certbench.verifiers.bounds.region import LayerBounds, Region

UNITS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}
"""Relative error of one rounding, by precision."""


@torch.no_grad()
def evaluation_error(
    network: Network, region: Region, bounds: LayerBounds, dtype: torch.dtype
) -> Float[Tensor, "n outputs"]:
    """Bound how far each logit of the float program can be from the real network's, anywhere in the balls.

    Args:
        network: the network.
        region: balls of inputs that the program is given in its own precision.
        bounds: bounds of the pre-activations over the balls.
        dtype: the program's precision.

    Raises:
        NumericalError: a precision without an error bound here, or sums too long for it.
    """
    if network.unfollowed is not None:
        raise NumericalError(network.unfollowed)
    low, high = region.box()
    sizes = [torch.maximum(low.abs(), high.abs())]
    unit = _unit(dtype)
    errors = [unit * sizes[0] + UNDERFLOW * unit]  # of the input, which is rounded to the program's precision
    limit = torch.finfo(dtype).max / 4
    for i, layer in enumerate(network.layers):
        steps = _checked(layer.roundings, unit)
        height, carried = layer.height.expand(len(region), -1), torch.zeros_like(layer.height)
        for source, path in layer.paths.items():
            height = height + path.forward(sizes[source] + errors[source])
            carried = carried + path.forward(errors[source])
        error = (carried + steps * height) * (1 + 1e-9)
        errors.append(torch.where(height + error < limit, error, torch.inf))  # beyond it the program may overflow
        if i < len(network.hidden):
            size = bounds.upper[i].clamp(min=0)
            sizes.append(size if network.activation(i) == RELU else torch.maximum(size, -bounds.lower[i]))
    return errors[-1]


@torch.no_grad()
def program_error(
    network: Network, region: Region, bounds: LayerBounds, rows: Float[Tensor, "n k outputs"], dtype: torch.dtype
) -> Float[Tensor, "n k"]:
    """Bound the error of `rows` times the logits: of the float program in the balls, plus of float64 at their centres.

    Args:
        network: the network.
        region: balls of inputs that the program is given in its own precision.
        bounds: bounds of the pre-activations over the balls.
        rows: linear functions of the logits.
        dtype: the program's precision.

    Raises:
        NumericalError: as `evaluation_error`.
    """
    error = evaluation_error(network, region, bounds, dtype) + bound_errors(network, region)[-1]
    return (rows.abs() @ error[..., None]).squeeze(-1) * (1 + 1e-9)


@torch.no_grad()
def bound_errors(network: Network, region: Region, dtype: torch.dtype = torch.float64) -> list[Float[Tensor, "n _"]]:
    r"""Bound the rounding error of a linear bound of each layer's outputs, computed by `backward` in float64.

    The bound is a sum of products along paths of the network with slopes in [0, 1], of constants and of intercepts no
    larger than the pre-activations. Without slopes these sum up to the magnitude $m_i = \sum_j |W_{ij}| m_j + |b_i|$ of
    each layer, $m_0 = |x| + \epsilon$, and each layer contributes one intercept and one constant on the way, so that
    $2 (i + 2) m_i$ bounds the sum of all moduli; how often one term is rounded follows from the layers' sizes.
    """
    low, high = region.box()
    magnitudes = [torch.maximum(low.abs(), high.abs())]
    steps, found = 2 * network.inputs + 64, []
    for i, layer in enumerate(network.layers):
        magnitude = layer.height.expand(len(region), -1)
        for source, path in layer.paths.items():
            magnitude = magnitude + path.forward(magnitudes[source])
        magnitudes.append(magnitude)
        # Backwards the sums run over the outputs of the layer, and of each map on the way to them.
        behind = max((part.transposed_roundings for part in layer.paths.values()), default=0)
        steps += layer.roundings + max(layer.outputs, behind) + 16
        found.append(4 * (i + 2) * _checked(steps, _unit(dtype)) * magnitude)
    return found


def _checked(roundings: int, unit: float) -> float:
    """Return gamma, if the sums are not too long for it."""
    if roundings * unit > 0.1:
        raise NumericalError(f"sums of {roundings} terms are too long for an error bound in this precision")
    return gamma(roundings, unit)


def _unit(dtype: torch.dtype) -> float:
    if dtype not in UNITS:
        raise NumericalError(f"no bound of rounding errors is known here for {dtype}")
    return UNITS[dtype]
