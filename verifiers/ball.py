"""Support function of an Lp ball cut by a box: what a linear function can gain inside the threat model."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.threat import ThreatModel


def box(
    threat: ThreatModel, x: Float[Tensor, "n d"], eps: Float[Tensor, " n"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """The smallest box around the perturbation set; for Linf it is the set itself."""
    low, high = x - eps[:, None], x + eps[:, None]
    if threat.domain is not None:
        low, high = low.clamp(min=threat.domain[0]), high.clamp(max=threat.domain[1])
    return low, high


def support(
    a: Float[Tensor, "n rows d"],
    p: float,
    eps: Float[Tensor, " n"],
    down: Float[Tensor, "n d"],
    up: Float[Tensor, "n d"],
) -> Float[Tensor, "n rows"]:
    r"""An upper bound of max a . delta over ||delta||_p <= eps and -down <= delta <= up (down, up in [0, eps]).

    Exact for p = inf (the box), for p = 1 (a knapsack, filled by decreasing |a|), and for p = 2 wherever the
    box does not bind. Elsewhere, for p = 2, it is the Lagrange dual: for every mu > 0,

        max <= mu eps^2 / 2 + sum_i max_{0 <= t <= room_i} |a_i| t - mu t^2 / 2,

    at a mu found by two rounds of fixing the coordinates that reach the box; any mu is sound.
    """
    room = torch.where(a > 0, up[:, None], down[:, None])
    a, eps = a.abs() * (room > 0), eps[:, None]
    whole_box = (a * room).sum(-1)
    if p == math.inf:
        return whole_box
    if p == 1:
        a, order = a.sort(dim=-1, descending=True)
        room = room.gather(-1, order)
        left = (eps[..., None] - (room.cumsum(-1) - room)).clamp(min=0)
        return (a * torch.minimum(room, left)).sum(-1)
    ball = a.norm(dim=-1) * eps
    mu = a.norm(dim=-1) / eps
    for _ in range(2):
        fixed = a > mu[..., None] * room
        left = (eps**2 - torch.where(fixed, room, 0).square().sum(-1)).clamp(min=0).sqrt()
        mu = torch.minimum(mu, torch.where(fixed, 0, a).norm(dim=-1) / left.clamp(min=1e-300))
    t = torch.minimum(room, a / mu[..., None].clamp(min=1e-300))
    dual = mu * eps**2 / 2 + (t * (a - mu[..., None] * t / 2)).sum(-1)
    return torch.minimum(torch.minimum(ball, whole_box), torch.where(dual.isfinite(), dual, torch.inf))
