"""Lp balls cut by a box: how much a linear function can gain inside, and the largest ball where it stays positive."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from certbench.core import ball
from certbench.core.threat import ThreatModel

TINY = 1e-300


def box(
    threat: ThreatModel, x: Float[Tensor, "n d"], eps: Float[Tensor, " n"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """Return the smallest box around the perturbation set; for Linf it is the set itself."""
    low, high = x - eps[:, None], x + eps[:, None]
    if threat.domain is not None:
        least, most = threat.ends(x)
        low, high = low.clamp(min=least), high.clamp(max=most)
    return low, high


def farthest(threat: ThreatModel, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Return the distance of the domain's farthest point from each input; infinity without a domain.

    It is a number of its input alone, whatever the batch, and correct to the last digit or two. In L0 it is the number
    of coordinates. With scales, it is in units of the scale; coordinates that do not move do not count.
    """
    if threat.domain is None:
        return torch.full_like(x[:, 0], torch.inf)
    scale = None if threat.scale is None else x.new_tensor(threat.scale)
    if threat.p == 0:
        return torch.full_like(x[:, 0], x.shape[1] if scale is None else int((scale > 0).sum()))
    low, high = threat.ends(x)
    way = torch.maximum(x - low, high - x).clamp(min=0)
    if scale is not None:
        way = way[:, scale > 0] / scale[scale > 0]
    if threat.p == math.inf:
        return way.amax(dim=1)
    length = math.fsum if threat.p == 1 else lambda row: math.hypot(*row)  # torch's sums depend on the batch
    return x.new_tensor([length(row) for row in way.tolist()])


def size(x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Return the size of each input, at least 1: the largest modulus of its entries. Limits of radii scale with it."""
    return x.abs().amax(dim=1).clamp(min=1.0)


def support(
    a: Float[Tensor, "n rows d"],
    p: float,
    eps: Float[Tensor, " n"],
    down: Float[Tensor, "n d"],
    up: Float[Tensor, "n d"],
) -> Float[Tensor, "n rows"]:
    r"""Bound max a . delta over ||delta||_p <= eps and -down <= delta <= up from above (down, up in [0, eps]).

    Exact for p = inf (the box), for p = 1 (a knapsack, filled by decreasing |a|), and for p = 2 wherever the
    box does not bind. Elsewhere, for p = 2, it is the Lagrange dual: for every mu > 0,

        max <= mu eps^2 / 2 + sum_i max_{0 <= t <= room_i} |a_i| t - mu t^2 / 2,

    at a mu found by two rounds of fixing the coordinates that reach the box. Any mu is sound.
    """
    if p == 2:  # squares of small entries underflow
        scale = a.abs().amax(dim=-1, keepdim=True).clamp(min=TINY)
        return scale.squeeze(-1) * _support(a / scale, p, eps, down, up)
    return _support(a, p, eps, down, up)


def _support(a: Tensor, p: float, eps: Tensor, down: Tensor, up: Tensor) -> Tensor:
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


def length(a: Float[Tensor, "*batch d"], q: float) -> Float[Tensor, "*batch"]:
    """Return the q-norm of each row, even if squares of the entries underflow or overflow."""
    if q != 2.0:
        plain: Tensor = torch.linalg.vector_norm(a, ord=q, dim=-1)
        return plain
    scale = a.abs().amax(dim=-1, keepdim=True).clamp(min=TINY)
    scaled: Tensor = scale.squeeze(-1) * torch.linalg.vector_norm(a / scale, dim=-1)
    return scaled


def rooms(
    threat: ThreatModel, x: Float[Tensor, "n d"], eps: Float[Tensor, " n"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """Return how far each coordinate can go down and up inside the ball and the domain."""
    low, high = box(threat, x, eps)
    return (x - low).clamp(min=0), (high - x).clamp(min=0)


def fall(
    a: Float[Tensor, "n rows d"], threat: ThreatModel, x: Float[Tensor, "n d"], eps: Float[Tensor, " n"]
) -> Float[Tensor, "n rows"]:
    """Bound from above how far a . x can fall inside the ball."""
    if threat.domain is None:
        return eps[:, None] * length(a, threat.q)
    down, up = rooms(threat, x, eps)
    if threat.p == math.inf:  # as `support`, with less to hold in memory
        middle, half = (up - down) / 2, (up + down) / 2
        return (a.abs() @ half[..., None]).squeeze(-1) - (a @ middle[..., None]).squeeze(-1)
    return support(a, threat.p, eps, up, down)


def fall_between(
    low: Float[Tensor, "n rows d"],
    high: Float[Tensor, "n rows d"],
    threat: ThreatModel,
    x: Float[Tensor, "n d"],
    eps: Float[Tensor, " n"],
) -> Float[Tensor, "n rows"]:
    """Bound from above how far a . x can fall inside the ball.

    a lies anywhere between `low` and `high`, at every point.
    """
    if threat.domain is None:
        return eps[:, None] * length(torch.maximum(-low, high), threat.q)
    (down, up), losses, gains = rooms(threat, x, eps), high.clamp(min=0), (-low).clamp(min=0)
    if threat.p == math.inf:
        return torch.maximum(losses * down[:, None], gains * up[:, None]).sum(dim=-1)
    ways = torch.cat([down, up], dim=1)  # a coordinate that went both ways would only fall further
    return support(torch.cat([losses, gains], dim=2), threat.p, eps, ways, ways)


def crossing(
    a: Float[Tensor, "n rows d"], centre: Float[Tensor, "n rows"], threat: ThreatModel, x: Float[Tensor, "n d"]
) -> Float[Tensor, "n rows"]:
    """Return a radius inside which a . delta + centre >= 0 for every delta: the largest one, up to rounding.

    Infinity where the function stays positive in the whole domain. Where `centre` is not positive, minus the distance
    at which it would be, in all of R^d. Exact for p = 1 and p = inf. For p = 2 with a domain it may be less than the
    largest radius, because `support` may lie above its maximum.
    """
    free = centre / length(a, threat.q)
    free = torch.where(centre > 0, free, free.clamp(max=0).nan_to_num(0.0, neginf=0.0))
    free = torch.where(a.isfinite().all(dim=-1) & centre.isfinite(), free, 0.0)  # NaN never certifies
    if threat.domain is None:
        return free
    low, high = threat.ends(x)
    down, up = (x - low).clamp(min=0)[:, None], (high - x).clamp(min=0)[:, None]
    room, slope = torch.where(a < 0, up, down), a.abs()  # the direction in which the function falls
    if threat.p == 2.0:
        return _grow(a, centre, threat, x, free)
    if threat.p == 1.0:  # the steepest coordinates first, each until it meets the border
        slope, order = slope.sort(dim=-1, descending=True)
        room = room.gather(-1, order)
        rates, lengths = slope, room
    else:  # every coordinate at once; it stops when the border is met, the nearest borders first
        room, order = room.sort(dim=-1)
        slope = slope.gather(-1, order)
        rates = slope.flip(-1).cumsum(-1).flip(-1)
        lengths = room.diff(dim=-1, prepend=torch.zeros_like(room[..., :1]))
    fallen = (rates * lengths).cumsum(-1)
    reached = lengths.cumsum(-1)
    last = (fallen < centre[..., None]).sum(dim=-1, keepdim=True)  # pieces walked to their end
    padded = functional.pad(fallen, (1, 0)), functional.pad(reached, (1, 0))
    left = centre[..., None] - padded[0].gather(-1, last)
    rate = functional.pad(rates, (0, 1)).gather(-1, last)
    radius = (padded[1].gather(-1, last) + left / rate).squeeze(-1)
    radius = torch.where(last.squeeze(-1) == a.shape[-1], torch.inf, radius)
    return torch.where(free > 0, torch.maximum(radius.nan_to_num(0.0, posinf=torch.inf), free), free)


def _grow(
    a: Float[Tensor, "n rows d"],
    centre: Float[Tensor, "n rows"],
    threat: ThreatModel,
    x: Float[Tensor, "n d"],
    radius: Float[Tensor, "n rows"],
) -> Float[Tensor, "n rows"]:
    """Lengthen a radius that holds in all of R^d, as the domain allows; each new one is checked.

    The support function is concave in eps, so scaling eps by centre / support overshoots only by rounding.
    """
    n, k, d = a.shape
    flat, points = a.reshape(n * k, 1, d), x[:, None].expand(n, k, d).reshape(n * k, d)
    best, margin = radius.reshape(-1), centre.reshape(-1)
    widest = _widest(threat, x)
    tried = best.clamp(max=widest, min=1e-300)
    for _ in range(10):
        down, up = rooms(threat, points, tried)
        gain = support(flat, 2.0, tried, up, down).squeeze(-1)
        best = torch.where((gain <= margin) & (margin > 0), torch.maximum(best, tried), best)
        tried = (tried * (margin / gain.clamp(min=1e-300)) * (1 - 1e-12)).clamp(max=widest, min=1e-300)
    best = torch.where(best >= widest, torch.inf, best)
    return torch.where(radius > 0, best.view(n, k), radius)


def _widest(threat: ThreatModel, x: Float[Tensor, "n d"]) -> float:
    """Return the L2 distance of two opposite corners of the domain, or a little more."""
    low, high = threat.ends(x)
    if isinstance(low, Tensor):
        return float((high - low).norm()) * (1 + 1e-9)
    return math.sqrt(x.shape[1]) * float(high - low)


@torch.no_grad()
def steepest(
    a: Float[Tensor, "n k d"], threat: ThreatModel, x: Float[Tensor, "n d"], eps: Float[Tensor, " n"]
) -> Float[Tensor, "n k d"]:
    """Return the perturbation inside ball and domain that lowers a . x the most (p = 2 with a domain: nearly)."""
    down, up = ball.rooms(threat, x, eps)
    room = torch.where(a > 0, down[:, None], up[:, None])
    slope, sign = a.abs() * (room > 0), -a.sign()
    if threat.p == math.inf:
        return sign * room
    if threat.p == 1:
        order = slope.argsort(dim=-1, descending=True)
        sorted_room = room.gather(-1, order)
        left = (eps[:, None, None] - (sorted_room.cumsum(-1) - sorted_room)).clamp(min=0)
        return sign * torch.zeros_like(room).scatter(-1, order, torch.minimum(sorted_room, left))
    mu = slope.norm(dim=-1, keepdim=True) / eps[:, None, None]
    for _ in range(1 if threat.domain is None else 6):
        fixed = slope > mu * room
        left = (eps[:, None, None] ** 2 - torch.where(fixed, room, 0.0).square().sum(-1, keepdim=True)).clamp(min=0)
        mu = torch.minimum(mu, torch.where(fixed, 0.0, slope).norm(dim=-1, keepdim=True) / left.sqrt().clamp(min=1e-30))
    step = sign * torch.minimum(room, slope / mu.clamp(min=1e-30))
    shrunk: Tensor = step * (eps[:, None, None] / step.norm(dim=-1, keepdim=True).clamp(min=1e-30)).clamp(max=1.0)
    return shrunk
