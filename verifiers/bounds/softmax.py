r"""Planes below and above each entry of a softmax, proved, over a box of its inputs.

Let $p_i = 1 / S$ with $S = \sum_j e^{d_j}$, $d_j = x_j - x_i$, and let every exponential lie below its chord, so that
$S \leq A(x) = B + \sum_{j \neq i} \alpha_j d_j$. Then for every $\tau > 0$

    p_i >= 1 / A >= 2 tau - tau^2 A(x),

which touches at $A = 1 / \tau$. Above, $\log p_i = -\log S$ is concave, and by Gibbs' inequality, for all weights
$w_j \geq 0$ whose sum is 1, with their entropy H(w),

    log p_i <= t(x) = -sum_{j != i} w_j d_j - H(w);

$p_i = e^{\log p_i}$ lies below the chord of the exponential over the range of $\log p_i$, which rises. Both planes are
those of Wei et al. (2023, "Convex bounds on the softmax function with applications to robustness verification"), taken
at the middle of the box: $w$ is the softmax there, $1 / \tau = A$ there. Offsets are rounded outward.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.verifiers.bounds.supports import tiny, unit

LONGEST = 300.0
"""Largest difference of two inputs for which planes are found; beyond it constants bound the softmax."""


class Planes(NamedTuple):
    """Planes below and above each entry of rows: slopes[..., i, j] is that of entry i along input j."""

    lower_slope: Float[Tensor, "... row row"]
    lower_offset: Float[Tensor, "... row"]
    upper_slope: Float[Tensor, "... row row"]
    upper_offset: Float[Tensor, "... row"]


def enclose(low: Float[Tensor, "... row"], high: Float[Tensor, "... row"]) -> tuple[Tensor, Tensor]:
    """Return bounds of the softmax of rows; NaN where an end of a row is NaN, 0 and 1 where it is infinite."""
    least, most = _differences(low, high)
    bottom, top = _reciprocal(most, -1), _reciprocal(least, 1)
    wild = ~(low.isfinite() & high.isfinite()).all(dim=-1, keepdim=True)
    bottom, top = torch.where(wild, 0.0, bottom), torch.where(wild, 1.0, top)
    unknown = (low.isnan() | high.isnan()).any(dim=-1, keepdim=True)
    return torch.where(unknown, torch.nan, bottom), torch.where(unknown, torch.nan, top)


def planes(low: Float[Tensor, "... row"], high: Float[Tensor, "... row"]) -> Planes:
    """Return planes below and above each entry of the softmax of rows."""
    n, u = low.shape[-1], unit(low)
    least, most = _differences(low, high)
    own = torch.eye(n, dtype=torch.bool, device=low.device)
    good = ((low.isfinite() & high.isfinite()).all(dim=-1) & (high - low >= 0).all(dim=-1))[..., None]
    good = good & ((least > -LONGEST) & (most < LONGEST)).all(dim=-1)
    least, most = torch.where(good[..., None], least, 0.0), torch.where(good[..., None], most, 0.0)
    reach = torch.where(good[..., None], torch.maximum(low.abs(), high.abs())[..., None, :], 0.0)  # |x_j|
    reach = reach + reach.diagonal(dim1=-2, dim2=-1)[..., None]  # bounds |d_j|, with room for its parts

    # Chords: above the exponential at both ends, hence between them. `base` sums their heights at 0.
    first, last = least.exp() * (1 + 16 * u), most.exp() * (1 + 16 * u)
    width = most - least
    chord = torch.where(width > 0, (last - first) / torch.where(width > 0, width, 1.0), first)
    chord = torch.where(own, 0.0, chord.nan_to_num(0.0, 0.0, 0.0).clamp(min=0))
    heights = torch.maximum(first - chord * least, last - chord * most)
    heights = heights + 8 * u * (last + chord * torch.maximum(least.abs(), most.abs())) + tiny(low)
    base = torch.where(own, 1.0, heights).sum(dim=-1)
    size = torch.where(own, 1.0, heights.abs()).sum(dim=-1)
    middle = least / 2 + most / 2
    tau = 1 / (base + (chord * middle).sum(dim=-1)).clamp(min=1.0)
    down = -(tau.square()[..., None]) * chord
    down = torch.where(own, -down.sum(dim=-1, keepdim=True), down)
    floor = 2 * tau - tau.square() * base
    floor = floor - 4 * (n + 8) * u * ((down.abs() * reach).sum(dim=-1) + 2 * tau + tau.square() * size) - tiny(low)

    # Weights of the softmax at the middle; that of the entry itself is what the others leave.
    weights = torch.softmax(low / 2 + high / 2, dim=-1) * (1 - 2 * n * u)
    weights = torch.where(good[..., None], weights[..., None, :], 1 / (n + 1))
    others = torch.where(own, 0.0, weights)
    rest = (1 - others.sum(dim=-1)) - 4 * n * u  # below the weight that makes the sum 1
    kept = (rest > 0) & good
    entropy = _entropy(others).sum(dim=-1) + torch.where(kept, _entropy(rest.clamp(min=1e-300)), 0.0)
    spread = (_entropy(others).abs().sum(dim=-1) + 1) * (n + 16) * u
    # H varies by at most |log w| + 1 times the error of the last weight, and -w log w is not monotone: allow for both.
    spread = spread + 8 * n * u * (1 - torch.where(kept, rest, 1.0).clamp(min=1e-300).log())
    entropy = entropy - spread - tiny(low)
    bottom, top = _reciprocal(most, -1), _reciprocal(least, 1)
    log_least, log_most = bottom.log(), top.log()
    log_least = log_least - 8 * u * (log_least.abs() + 1)
    log_most = (log_most + 8 * u * (log_most.abs() + 1)).clamp(max=8 * u)
    one, two = log_least.exp() * (1 + 16 * u), log_most.exp() * (1 + 16 * u)
    wide = log_most - log_least
    rise = torch.where(wide > 0, (two - one) / torch.where(wide > 0, wide, 1.0), one).nan_to_num(0.0, 0.0, 0.0)
    rise = rise.clamp(min=0)
    height = torch.maximum(one - rise * log_least, two - rise * log_most)
    height = height + 8 * u * (two + rise * torch.maximum(log_least.abs(), log_most.abs()))
    over = -rise[..., None] * others
    over = torch.where(own, -over.sum(dim=-1, keepdim=True), over)
    top_offset = height - rise * entropy
    budget = 4 * (n + 8) * u * ((over.abs() * reach).sum(dim=-1) + height.abs() + rise * (entropy.abs() + 1))
    top_offset = top_offset + budget + tiny(low)

    # Constants where there is no plane; NaN ends stay NaN.
    bounds = enclose(low, high)
    fine = good & floor.isfinite() & down.isfinite().all(dim=-1)
    above = kept & top_offset.isfinite() & over.isfinite().all(dim=-1)
    return Planes(
        torch.where(fine[..., None], down, 0.0),
        torch.where(fine, floor, bounds[0]),
        torch.where(above[..., None], over, 0.0),
        torch.where(above, top_offset, bounds[1]),
    )


def _differences(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return bounds of x_j - x_i at [..., i, j], rounded outward; 0 for i = j."""
    own = torch.eye(low.shape[-1], dtype=torch.bool, device=low.device)
    least, most = low[..., None, :] - high[..., :, None], high[..., None, :] - low[..., :, None]
    least, most = least.nextafter(torch.full_like(least, -torch.inf)), most.nextafter(torch.full_like(most, torch.inf))
    return torch.where(own, 0.0, least), torch.where(own, 0.0, most)


def _reciprocal(differences: Tensor, side: int) -> Tensor:
    """Bound 1 / sum of exponentials from below (-1) or above (1), by the logarithm of the sum, within [0, 1]."""
    n, u = differences.shape[-1], unit(differences)
    exponent = -torch.logsumexp(differences, dim=-1)
    error = (n + 32) * u * (1 + exponent.abs() + differences.abs().amax(dim=-1))
    found = (exponent + side * error).exp() * (1 + side * 32 * u) + side * tiny(differences)
    return found.clamp(0.0, 1.0)


def _entropy(weight: Tensor) -> Tensor:
    """Return -w log w, 0 for w = 0."""
    return -torch.xlogy(weight, weight)
