r"""Planes below and above each entry of a softmax, proved, over a box of its inputs.

Let every exponential lie below its chord, so that $\sum_j e^{x_j} \leq A(x) = B + \sum_j \alpha_j x_j$. As
$e^s \geq e^\sigma (1 + s - \sigma)$ and $\log A \leq \log \theta + A / \theta - 1$ for all $\sigma$ and $\theta > 0$,

    p_i >= exp(x_i - log A(x)) >= exp(sigma) (2 - sigma - log theta + x_i - A(x) / theta),

which touches where $A = \theta$ and $x_i - \log A = \sigma$. Above, with $d_j = x_j - x_i$, by Gibbs' inequality, for
all weights $w_j \geq 0$ whose sum is 1, with their entropy H(w),

    log p_i <= t(x) = -sum_{j != i} w_j d_j - H(w);

$p_i = e^{\log p_i}$ lies below the chord of the exponential over the range of $\log p_i$, which rises. Both planes are
those of Wei et al. (2023, "Convex bounds on the softmax function with applications to robustness verification"), taken
at the middle of the box, where $w$ is the softmax. Offsets are rounded outward.
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


def planes(
    low: Float[Tensor, "... row"],
    high: Float[Tensor, "... row"],
    below: Float[Tensor, "... row"] | None = None,
    above: Float[Tensor, "... row"] | None = None,
) -> Planes:
    """Return planes below and above each entry of the softmax of rows.

    Args:
        low: lower bounds of the inputs.
        high: upper bounds.
        below: numbers in [0, 1], the points of the box where the planes below touch; None: 0.5, the middle. Offsets and
            slopes are differentiable in them.
        above: those of the planes above.
    """
    n, u = low.shape[-1], unit(low)
    least, most = _differences(low, high)
    own = torch.eye(n, dtype=torch.bool, device=low.device)
    good = ((low.isfinite() & high.isfinite()).all(dim=-1) & (high - low >= 0).all(dim=-1))[..., None]
    good = good & ((least > -LONGEST) & (most < LONGEST)).all(dim=-1)
    least, most = torch.where(good[..., None], least, 0.0), torch.where(good[..., None], most, 0.0)
    reach = torch.where(good[..., None], torch.maximum(low.abs(), high.abs())[..., None, :], 0.0)  # |x_j|
    reach = reach + reach.diagonal(dim1=-2, dim2=-1)[..., None]  # bounds |d_j|, with room for its parts

    floor, down = _below(low, high, torch.full_like(low, 0.5) if below is None else below, good, own)
    at = torch.full_like(low, 0.5) if above is None else above
    width = most - least

    # Weights of the softmax at a point; that of the entry itself is what the others leave.
    weights = torch.softmax(torch.where(own, 0.0, least + at[..., None] * width), dim=-1) * (1 - 2 * n * u)
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

    fine = good & floor.isfinite() & down.isfinite().all(dim=-1)
    held = kept & top_offset.isfinite() & over.isfinite().all(dim=-1)
    if bool((fine & held).all()):
        return Planes(down, floor, over, top_offset)
    bounds = enclose(low, high)  # constants where there is no plane; NaN ends stay NaN
    return Planes(
        torch.where(fine[..., None], down, 0.0),
        torch.where(fine, floor, bounds[0]),
        torch.where(held[..., None], over, 0.0),
        torch.where(held, top_offset, bounds[1]),
    )


def _below(
    low: Tensor, high: Tensor, choice: Tensor, good: Tensor, own: Tensor
) -> tuple[Float[Tensor, "... row"], Float[Tensor, "... row row"]]:
    """Return offsets and slopes of the planes below; `choice` is the point of the box at which they touch."""
    n, u = low.shape[-1], unit(low)
    shift = torch.where(good.any(dim=-1, keepdim=True), high.amax(dim=-1, keepdim=True), 0.0)  # the same for a row
    near, far = (torch.where(good.any(dim=-1, keepdim=True), end - shift, 0.0) for end in (low, high))
    near = near.nextafter(torch.full_like(near, -torch.inf))
    far = far.nextafter(torch.full_like(far, torch.inf))
    # Chords: above the exponential at both ends, hence between them.
    first, last = near.exp() * (1 + 16 * u) + tiny(low), far.exp() * (1 + 16 * u) + tiny(low)
    chord = ((last - first) / (far - near)).clamp(min=0)
    heights = torch.maximum(first - chord * near, last - chord * far)
    heights = heights + 8 * u * (last + chord * torch.maximum(near.abs(), far.abs()))
    base, size = heights.sum(dim=-1, keepdim=True), heights.abs().sum(dim=-1, keepdim=True)
    least, span = (chord * near).sum(dim=-1, keepdim=True), (chord * (far - near)).sum(dim=-1, keepdim=True)
    theta = (base + least + choice * span).clamp(min=1e-150)
    sigma = near + choice * (far - near) - theta.log()
    scale = sigma.exp()
    slope = -(scale / theta)[..., None] * chord[..., None, :]
    slope = slope + torch.where(own, scale[..., None], 0.0)
    parts = 2 - sigma - theta.log() - base / theta
    terms = 2 + sigma.abs() + theta.log().abs() + size / theta
    # In x - shift, whose entries are at most as long as `reach`; what is lost there is counted, too.
    moduli = (scale / theta)[..., None] * chord[..., None, :] + torch.where(own, scale[..., None], 0.0)
    reach = torch.maximum(low.abs(), high.abs())[..., None, :] + shift.abs()[..., None]
    offset = scale * parts - shift * slope.sum(dim=-1)
    lost = 4 * (n + 16) * u * (scale * terms + (moduli * reach).sum(dim=-1))
    return offset - lost - tiny(low), slope


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
