"""Choice of the neuron on whose sign a leaf is split; in float32, as no proof depends on it."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.core.ball import steepest
from certbench.networks.layers import Network
from certbench.verifiers.bounds.lines import upper_line
from certbench.verifiers.bounds.optimise import Choice, coefficients, evaluate, flat
from certbench.verifiers.bounds.region import LayerBounds, Region


@torch.no_grad()
def best_neurons(
    fast: Network,
    region: Callable[[int], Region],
    bounds: LayerBounds,
    choice: Choice,
    rows: Float[Tensor, "n 1 outputs"],
    candidates: int,
) -> Int[Tensor, " n"]:
    """Return the neuron to split in each leaf, -1 where all signs are known.

    Candidates are the neurons with the largest gap between relaxation and ReLU at the minimiser (these gaps add up to
    the whole gap there), and those with the largest intercept (BaBSR). The one whose worse child is best wins.

    Args:
        fast: the network in float32.
        region: the ball, once for each leaf.
        bounds: bounds of the leaves' neurons, with their signs built in.
        choice: slopes and multipliers of the leaves.
        rows: the margins that the leaves bound.
        candidates: number of neurons of each leaf that are tried.
    """
    low, high = (end.float() for end in flat(bounds))
    if low.shape[1] == 0:
        return torch.full((len(rows),), -1)
    single = _assembled(low, high, bounds)
    alpha, beta, rows = choice.alpha.float(), choice.beta.float(), rows.float()
    ball = _single(region(len(rows)))
    made = evaluate(fast, ball, single, rows, Choice(alpha, beta))
    point = ball.x + steepest(made.a, ball.threat, ball.x, ball.eps).squeeze(1)
    z = torch.cat(fast.preactivations(point)[:-1], dim=1)
    found, _ = coefficients(fast, single, rows, Choice(alpha, beta), len(fast.layers) - 1)
    h = torch.cat(found, dim=-1).squeeze(1)
    free = (low < 0) & (high > 0)
    slope, offset = upper_line(low, high)
    above, below = slope * z + offset - z.clamp(min=0), z.clamp(min=0) - alpha.squeeze(1) * z
    gap = torch.where(h > 0, h * below, -h * above).clamp(min=0)
    area = h.abs() * offset
    k = min(candidates, low.shape[1])
    scores = [torch.where(free, score, -1.0) for score in (gap, area)]
    picks = torch.cat(
        [score.topk(size, dim=1).indices for score, size in zip(scores, (k - k // 2, k // 2), strict=True)], dim=1
    )
    chosen = picks[:, 0]
    if k > 1:
        worst = _worse_children(fast, _single(region(picks.numel())), single, Choice(alpha, beta), rows, picks)
        worst = torch.where(free.gather(1, picks), worst, -math.inf)
        chosen = picks.gather(1, worst.argmax(dim=1, keepdim=True)).squeeze(1)
    return torch.where(free.any(dim=1), chosen, -1).cpu()


def _worse_children(
    fast: Network, ball: Region, bounds: LayerBounds, choice: Choice, rows: Tensor, picks: Int[Tensor, "n k"]
) -> Float[Tensor, "n k"]:
    """Return the worse bound of the two children at each candidate, without any optimisation."""
    low, high = flat(bounds)
    n, k = picks.shape
    results = []
    for sign in (1, -1):
        a, b = (end.repeat_interleave(k, dim=0) for end in (low, high))
        (a if sign > 0 else b).scatter_(1, picks.reshape(-1, 1), 0.0)
        start = Choice(choice.alpha.repeat_interleave(k, dim=0), choice.beta.repeat_interleave(k, dim=0))
        made = evaluate(fast, ball, _assembled(a, b, bounds), rows.repeat_interleave(k, dim=0), start)
        results.append(made.lower.view(n, k))
    return torch.minimum(*results) + 1e-3 * torch.maximum(*results)


def _single(ball: Region) -> Region:
    return Region(ball.threat, ball.x.float(), ball.eps.float())


def _assembled(low: Tensor, high: Tensor, like: LayerBounds) -> LayerBounds:
    """Return bounds of all hidden neurons, layer by layer as others are."""
    sizes = [end.shape[1] for end in like.lower]
    return LayerBounds(torch.split(low, sizes, dim=1), torch.split(high, sizes, dim=1), like.method)
