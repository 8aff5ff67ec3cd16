r"""Optimised linear bounds: slopes alpha (Xu et al., 2021) and split multipliers beta (Wang et al., 2021).

The bound of `relaxation.backward` is a concave piecewise smooth function of the slopes $\alpha \in [0, 1]$ of each layer
and of the multipliers $\beta \geq 0$ of neurons whose sign is known. Adam climbs it, in float32; what comes back is
evaluated anew in float64 at the point that was found. Any point is sound, so nothing rests on how well it climbed.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from certbench import ball
from certbench.threat import ThreatModel
from certbench.verifiers.network import ReluNetwork
from certbench.verifiers.relaxation import LayerBounds, Region, backward, lower_slope, upper_line

RATE = 0.25, 0.5
"""First steps of Adam, in alpha and in beta, the latter in units of the layer's largest coefficient; both shrink by
`DECAY` per iteration. Judgements, from a few networks of digits and MNIST."""
DECAY = 0.9, 0.98
"""Shrinking of the steps per iteration: not faster than the first, and for long runs not slower than the second."""


@dataclass(frozen=True, eq=False)
class Choice:
    """Slopes and multipliers of k rows per domain, the neurons of all hidden layers side by side.

    Attributes:
        alpha: slopes of the lines below unstable ReLUs.
        beta: multipliers of neurons whose sign is known; ignored elsewhere.
    """

    alpha: Float[Tensor, "n k neurons"]
    beta: Float[Tensor, "n k neurons"]

    def __getitem__(self, index: Tensor | slice) -> "Choice":
        """Those of some of the domains."""
        return Choice(self.alpha[index], self.beta[index])

    @staticmethod
    def crown(bounds: LayerBounds, rows: int) -> "Choice":
        """CROWN's adaptive slopes, and no multipliers."""
        low, high = flat(bounds)
        alpha = lower_slope(low, high, None)[:, None].expand(-1, rows, -1)
        return Choice(alpha, torch.zeros_like(alpha))


@dataclass(frozen=True, eq=False)
class Optimised:
    """Linear functions below `rows` times the outputs, where the bounds that they were made with hold.

    Attributes:
        a: coefficients of the flat input.
        centre: values at the input itself.
        lower: lower bounds over the region.
        choice: what they were made with; a start for other regions and further splits.
    """

    a: Float[Tensor, "n k d"]
    centre: Float[Tensor, "n k"]
    lower: Float[Tensor, "n k"]
    choice: Choice


def flat(bounds: LayerBounds) -> tuple[Float[Tensor, "n neurons"], Float[Tensor, "n neurons"]]:
    """Bounds of all hidden layers side by side."""
    return torch.cat(bounds.lower, dim=1), torch.cat(bounds.upper, dim=1)


def signs(low: Float[Tensor, "... neurons"], high: Float[Tensor, "... neurons"]) -> Float[Tensor, "... neurons"]:
    """1 where a pre-activation is known to be at least 0, -1 where it is known to be at most 0, else 0."""
    return (low >= 0).to(low.dtype) - ((high <= 0) & (low < 0)).to(low.dtype)


def relax(
    network: ReluNetwork,
    bounds: LayerBounds,
    rows: Float[Tensor, "n k outputs"],
    choice: Choice,
    layer: int | None = None,
) -> tuple[Float[Tensor, "n k d"], Float[Tensor, "n k"]]:
    """Linear functions a . x + b below `rows` times what `layer` gives (the last one by default), for any choice.

    A multiplier counts only where `bounds` fix the sign of the neuron, as -beta z with z >= 0 or beta z with z <= 0.
    """
    if layer is None:
        layer = len(network.layers) - 1
    if layer == 0:
        linear = backward(network, rows, 0, bounds)
        return linear.a, linear.b
    sizes = [low.shape[1] for low in bounds.lower]
    sign = signs(*flat(bounds))[:, None]
    multipliers = -sign * choice.beta.clamp(min=0)
    slopes, terms = choice.alpha.split(sizes, dim=-1), multipliers.split(sizes, dim=-1)
    linear = backward(network, rows, layer, bounds, slopes, terms)
    return linear.a, linear.b


@torch.no_grad()
def evaluate(
    network: ReluNetwork,
    region: Region,
    bounds: LayerBounds,
    rows: Float[Tensor, "n k outputs"],
    choice: Choice,
    layer: int | None = None,
) -> Optimised:
    """The bound of a choice, in the precision of the network: rigorous in float64, whatever the choice."""
    sane = Choice(choice.alpha.nan_to_num(0.0).to(rows.dtype), choice.beta.nan_to_num(0.0, posinf=0.0).to(rows.dtype))
    a, b = relax(network, bounds, rows, sane, layer)
    centre = (a @ region.x[..., None]).squeeze(-1) + b
    down, up = ball.rooms(region.threat, region.x, region.eps)
    return Optimised(a, centre, centre - ball.support(a, region.threat.p, region.eps, up, down), sane)


def optimise(
    network: ReluNetwork,
    region: Region,
    bounds: LayerBounds,
    rows: Float[Tensor, "n k outputs"],
    *,
    splits: Bool[Tensor, "n neurons"] | None = None,
    start: Choice | None = None,
    iterations: int = 20,
    enough: Float[Tensor, " n"] | None = None,
    layer: int | None = None,
    fast: ReluNetwork | None = None,
    rate: tuple[float, float] = RATE,
) -> Optimised:
    """Raise the lower bounds of `rows` over the region by Adam on alpha and beta; the best seen of each row is kept.

    Row i depends on domain i alone. Runs where the bounds of domain i are those of its own splits.

    Args:
        network: in float64.
        region: balls over which the minimum is raised, inside those on which `bounds` hold.
        bounds: of the hidden layers before `layer`, with a bound of 0 at every neuron that is split.
        rows: what to bound.
        splits: neurons whose multiplier is optimised; none by default.
        start: where to begin; CROWN's slopes by default.
        iterations: steps of Adam.
        enough: domains whose bounds all exceed this are left alone from then on.
        layer: whose outputs the rows weigh; the logits by default.
        fast: the same network in float32, made here if missing.
        rate: first steps in alpha and in beta.
    """
    n, k = rows.shape[:2]
    layer = len(network.layers) - 1 if layer is None else layer
    if layer < len(network.hidden):
        bounds = bounds.upto(layer)
    if layer == 0 or n == 0 or k == 0:
        none = rows.new_zeros(n, k, 0 if layer == 0 else flat(bounds)[0].shape[1])
        return evaluate(network, region, bounds, rows, Choice(none, none), layer)
    crown = Choice.crown(bounds, k)
    start = crown if start is None else start
    climber = _Climber(
        network.to(torch.float32) if fast is None else fast, region, bounds, rows, splits, start, layer, rate
    )
    found = climber.run(iterations, enough)
    best = evaluate(network, region, bounds, rows, found, layer)
    plain = evaluate(network, region, bounds, rows, start, layer)  # the climb was in float32: never end below the start
    worse = ~(best.lower >= plain.lower)
    return Optimised(
        torch.where(worse[..., None], plain.a, best.a),
        torch.where(worse, plain.centre, best.centre),
        torch.where(worse, plain.lower, best.lower),
        Choice(
            torch.where(worse[..., None], plain.choice.alpha, best.choice.alpha),
            torch.where(worse[..., None], plain.choice.beta, best.choice.beta),
        ),
    )


class _Climber:
    """Adam on the choices of a batch of domains, each for itself."""

    def __init__(
        self,
        network: ReluNetwork,
        region: Region,
        bounds: LayerBounds,
        rows: Tensor,
        splits: Tensor | None,
        start: Choice,
        layer: int,
        rate: tuple[float, float],
    ) -> None:
        dtype = network.layers[-1].bias.dtype
        self.network, self.layer, self.rate = network, layer, rate
        self.region = replace(region, x=region.x.to(dtype), eps=region.eps.to(dtype))
        self.bounds = LayerBounds(
            tuple(low.to(dtype) for low in bounds.lower), tuple(up.to(dtype) for up in bounds.upper), bounds.method
        )
        self.rows = rows.to(dtype)
        self.alpha, self.beta = start.alpha.to(dtype).clone(), start.beta.to(dtype).clone()
        low, high = flat(self.bounds)
        self.free = ((low < 0) & (high > 0))[:, None].expand_as(self.alpha)
        split = torch.zeros_like(low, dtype=torch.bool) if splits is None else splits & (signs(low, high) != 0)
        self.split = split[:, None].expand_as(self.alpha) if bool(split.any()) else None
        self.unit = torch.ones_like(self.beta)
        if self.split is not None:
            self.unit = units(self.network, self.bounds, self.rows, Choice(self.alpha, self.beta), layer)

    def run(self, iterations: int, enough: Tensor | None) -> Choice:
        """The best choice seen of each row."""
        n, k = self.rows.shape[:2]
        index = torch.arange(n, device=self.rows.device)
        best = torch.full((n, k), -math.inf, dtype=self.rows.dtype, device=self.rows.device)
        kept = self.alpha.clone(), self.beta.clone()
        moments = [torch.zeros_like(self.alpha) for _ in range(4 if self.split is not None else 2)]
        decay = min(max(0.03 ** (1 / max(iterations, 1)), DECAY[0]), DECAY[1])
        for step in range(iterations + 1):
            alpha = self.alpha[index].requires_grad_()
            beta = self.beta[index].requires_grad_(self.split is not None)
            with torch.enable_grad():
                value = self.value(index, Choice(alpha, beta))
                wanted = [alpha] if self.split is None else [alpha, beta]
                gradients = torch.autograd.grad(value.sum(), wanted) if step < iterations else ()
            value = value.detach()
            better = value > best[index]
            best[index] = torch.where(better, value, best[index])
            for store, now in zip(kept, (alpha, beta), strict=True):
                store[index] = torch.where(better[..., None], now.detach(), store[index])
            if step == iterations:
                break
            self.step(index, alpha.detach(), beta.detach(), gradients, moments, step, decay)
            if enough is not None:
                short = ~(best[index] > enough[index].to(best)[:, None]).all(dim=1)
                index = index[short]
                if len(index) == 0:
                    break
        return Choice(*kept)

    def value(self, index: Tensor, choice: Choice) -> Tensor:
        """The minima over the region; their gradient is that at the minimiser held fixed (Danskin)."""
        region, bounds = (self.region, self.bounds) if len(index) == len(self.rows) else (self.region[index], self.bounds[index])
        a, b = relax(self.network, bounds, self.rows[index], choice, self.layer)
        with torch.no_grad():
            point = region.x[:, None] + steepest(a, region.threat, region.x, region.eps)
        return (a * point).sum(dim=-1) + b

    def step(
        self,
        index: Tensor,
        alpha: Tensor,
        beta: Tensor,
        gradients: tuple[Tensor, ...],
        moments: list[Tensor],
        step: int,
        decay: float,
    ) -> None:
        """One step of Adam (Kingma and Ba, 2015), projected onto [0, 1] and [0, inf)."""
        moved = []
        for i, gradient in enumerate(gradients):
            gradient = torch.where((self.free if i == 0 else self.split)[index], gradient, 0.0).nan_to_num(0.0)  # type: ignore[index]
            unit = 1.0 if i == 0 else self.unit[index]
            gradient = gradient * unit
            first = moments[2 * i][index].lerp(gradient, 0.1)
            second = moments[2 * i + 1][index].lerp(gradient.square(), 0.001)
            moments[2 * i][index], moments[2 * i + 1][index] = first, second
            first, second = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
            moved.append(self.rate[i] * decay**step * unit * first / (second.sqrt() + 1e-12))
        self.alpha[index] = (alpha + moved[0]).clamp(0, 1)
        if len(moved) == 2:
            self.beta[index] = (beta + moved[1]).clamp(min=0)


@torch.no_grad()
def coefficients(
    network: ReluNetwork, bounds: LayerBounds, rows: Float[Tensor, "n k outputs"], choice: Choice, layer: int
) -> Float[Tensor, "n k neurons"]:
    """What the backward pass multiplies each ReLU's output with, for scores and units; no bound is made of it."""
    sizes = [low.shape[1] for low in bounds.lower]
    sign = signs(*flat(bounds))[:, None]
    slopes = choice.alpha.split(sizes, dim=-1)
    terms = (-sign * choice.beta.clamp(min=0)).split(sizes, dim=-1)
    found = [rows.new_zeros(*rows.shape[:2], size) for size in sizes]
    z = rows
    for at in range(layer, -1, -1):
        if at < layer:
            low, high = bounds.lower[at][:, None], bounds.upper[at][:, None]
            h = found[at]
            z = h.clamp(min=0) * lower_slope(low, high, slopes[at]) + h.clamp(max=0) * upper_line(low, high)[0] + terms[at]
        for source, part in network.layers[at].maps.items():
            if source > 0:
                found[source - 1] = found[source - 1] + part.transpose(z.flatten(0, 1)).view(*z.shape[:2], -1)
    return torch.cat(found, dim=-1)


def units(
    network: ReluNetwork, bounds: LayerBounds, rows: Float[Tensor, "n k outputs"], choice: Choice, layer: int
) -> Float[Tensor, "n k neurons"]:
    """The largest coefficient of each neuron's layer: the unit of its multiplier."""
    sizes = [low.shape[1] for low in bounds.lower]
    parts = coefficients(network, bounds, rows, choice, layer).split(sizes, dim=-1)
    return torch.cat([part.abs().amax(dim=-1, keepdim=True).expand_as(part) for part in parts], dim=-1).clamp(min=1e-12)


@torch.no_grad()
def steepest(
    a: Float[Tensor, "n k d"], threat: ThreatModel, x: Float[Tensor, "n d"], eps: Float[Tensor, " n"]
) -> Float[Tensor, "n k d"]:
    """The perturbation inside the ball and the domain that lowers a . x the most (p = 2 with a domain: nearly)."""
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
    return step * (eps[:, None, None] / step.norm(dim=-1, keepdim=True).clamp(min=1e-30)).clamp(max=1.0)
