r"""Optimised linear bounds: slopes alpha (Xu et al., 2021) and split multipliers beta (Wang et al., 2021).

The bound of `backward` depends, piecewise smoothly, on the numbers $\alpha \in [0, 1]$ that choose the lines around
activations, and on the multipliers $\beta \geq 0$ of ReLUs whose sign is known. Adam climbs it, in float32; what comes
back is evaluated anew in float64 at the best point that was seen. Any point is sound, so nothing rests on how well it
climbed.

Networks with other functions have multipliers m of either sign, for every pre-activation z in [l, u]: the bound gets
m z - max(m l, m u), which is at most 0. Where a split made l or u, this carries it to the input.

The file is long because the choice, its bound and the climb share one layout of the numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from certbench.core.ball import steepest
from certbench.networks.layers import Bilinear, Network
from certbench.networks.piecewise_linear import RELU
from certbench.verifiers.bounds.backward import backward, through
from certbench.verifiers.bounds.lines import Lines, lower_slope, upper_line
from certbench.verifiers.bounds.region import LayerBounds, Region
from certbench.verifiers.bounds.relaxations import Family, chosen, numbers, undecided

RATE = 0.25, 0.5
"""First step sizes of Adam in alpha and in beta, the latter in units of the layer's largest coefficient. Both shrink by
`DECAY` per iteration. Judgements, from a few networks of digits and MNIST."""
DECAY = 0.9, 0.98
"""Fastest shrinking of the step sizes per iteration, and the slowest in long runs."""


@dataclass(frozen=True, eq=False)
class Choice:
    """Slopes and multipliers of k rows per domain, the neurons of all hidden layers side by side.

    Attributes:
        alpha: slopes of the lines below unstable ReLUs, and the numbers that choose other lines (`relaxations.chosen`),
            two for each entry.
        beta: multipliers, one for each pre-activation. In ReLU networks they are not negative, and count only where the
            sign of the neuron is known. In others they have either sign.
    """

    alpha: Float[Tensor, "n k numbers"]
    beta: Float[Tensor, "n k neurons"]

    def __getitem__(self, index: Tensor | slice) -> "Choice":
        """Select some of the domains."""
        return Choice(self.alpha[index], self.beta[index])

    @staticmethod
    def crown(network: Network, bounds: LayerBounds, rows: int, n: int = 1) -> "Choice":
        """Return CROWN's lines, and no multipliers, for `n` domains."""
        parts = [numbers(network.activation(i), low, high) for i, (low, high) in enumerate(ends(bounds))]
        alpha = torch.cat(parts, dim=1) if parts else torch.zeros(n, 0, dtype=torch.float64)
        alpha = alpha[:, None].expand(-1, rows, -1)
        return Choice(alpha, alpha.new_zeros(*alpha.shape[:2], sum(neurons(bounds))))


@dataclass(frozen=True, eq=False)
class Optimised:
    """Linear functions below `rows` times the outputs, where the bounds that they were made with hold.

    Attributes:
        a: coefficients of the flat input.
        centre: values at the input itself.
        lower: lower bounds over the region.
        choice: the slopes and multipliers that made them; a start for other regions and further splits.
    """

    a: Float[Tensor, "n k d"]
    centre: Float[Tensor, "n k"]
    lower: Float[Tensor, "n k"]
    choice: Choice


def ends(bounds: LayerBounds) -> list[tuple[Tensor, Tensor]]:
    """Return lower and upper bounds, layer by layer."""
    return list(zip(bounds.lower, bounds.upper, strict=True))


def widths(network: Network, bounds: LayerBounds) -> list[int]:
    """Return the number of alphas of each hidden layer with bounds: one for a ReLU, two for each output of others."""
    functions = [network.activation(i) for i in range(len(bounds.lower))]
    single = [function == RELU or isinstance(function, Bilinear) for function in functions]
    return [low.shape[1] * (1 if one else 2) for low, one in zip(bounds.lower, single, strict=True)]


def neurons(bounds: LayerBounds) -> list[int]:
    """Return the number of pre-activations of each hidden layer with bounds."""
    return [low.shape[1] for low in bounds.lower]


def is_pure(network: Network, bounds: LayerBounds) -> bool:
    """Say whether all functions behind hidden layers with bounds are ReLUs."""
    return all(network.activation(i) == RELU for i in range(len(bounds.lower)))


def known_signs(network: Network, bounds: LayerBounds, n: int = 1) -> Float[Tensor, "n neurons"]:
    """Return `signs` at ReLUs, and 0 elsewhere, for each alpha."""
    parts = [
        signs(low, high) if network.activation(i) == RELU else low.new_zeros(len(low), width)
        for i, ((low, high), width) in enumerate(zip(ends(bounds), widths(network, bounds), strict=True))
    ]
    return torch.cat(parts, dim=1) if parts else torch.zeros(n, 0, dtype=torch.float64)


def flat(bounds: LayerBounds, n: int = 1) -> tuple[Float[Tensor, "n neurons"], Float[Tensor, "n neurons"]]:
    """Put the bounds of all hidden layers side by side; without hidden layers these are `n` empty rows."""
    if not bounds.lower:
        return torch.zeros(n, 0, dtype=torch.float64), torch.zeros(n, 0, dtype=torch.float64)
    return torch.cat(bounds.lower, dim=1), torch.cat(bounds.upper, dim=1)


def signs(low: Float[Tensor, "... neurons"], high: Float[Tensor, "... neurons"]) -> Float[Tensor, "... neurons"]:
    """Return 1 where a pre-activation is known to be at least 0, -1 where it is known to be at most 0, else 0."""
    return (low >= 0).to(low.dtype) - ((high <= 0) & (low < 0)).to(low.dtype)


def relax(
    network: Network,
    bounds: LayerBounds,
    rows: Float[Tensor, "n k outputs"],
    choice: Choice,
    layer: int | None = None,
) -> tuple[Float[Tensor, "n k d"], Float[Tensor, "n k"]]:
    """Return linear functions a . x + b below `rows` times the outputs of `layer`, by default the last, for any choice.

    In a ReLU network a multiplier counts only where `bounds` fix the sign of the neuron, as -beta z with z >= 0 or
    beta z with z <= 0. In others it counts as beta z less its largest value within `bounds`.
    """
    if layer is None:
        layer = len(network.layers) - 1
    if layer == 0:
        linear = backward(network, rows, 0, bounds)
        return linear.a, linear.b
    slopes, sizes = torch.split(choice.alpha, widths(network, bounds), dim=-1), neurons(bounds)
    if is_pure(network, bounds):
        multipliers = -known_signs(network, bounds)[:, None] * choice.beta.clamp(min=0)
        linear = backward(network, rows, layer, bounds, slopes, torch.split(multipliers, sizes, dim=-1))
        return linear.a, linear.b
    if not bool(choice.beta.any()):
        linear = backward(network, rows, layer, bounds, slopes)
        return linear.a, linear.b
    linear = backward(network, rows, layer, bounds, slopes, torch.split(choice.beta, sizes, dim=-1))
    low, high = flat(bounds)
    return linear.a, linear.b - largest(choice.beta, low[:, None], high[:, None]).sum(dim=-1)


def largest(multiplier: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the largest value of a multiplier times z on [low, high]; the slope at 0 is that of the middle."""
    end = torch.where(multiplier > 0, high, torch.where(multiplier < 0, low, low / 2 + high / 2))
    return torch.where((multiplier == 0) & ~end.isfinite(), 0.0, multiplier * end)


@torch.no_grad()
def evaluate(
    network: Network,
    region: Region,
    bounds: LayerBounds,
    rows: Float[Tensor, "n k outputs"],
    choice: Choice,
    layer: int | None = None,
) -> Optimised:
    """Return the bound of a choice, in the precision of the network; in float64 it is rigorous for any choice."""
    beta = choice.beta.nan_to_num(0.0, posinf=0.0, neginf=0.0)
    sane = Choice(choice.alpha.nan_to_num(0.0).to(rows.dtype), beta.to(rows.dtype))
    a, b = region.tilted(*relax(network, bounds, rows, sane, layer))
    return Optimised(a, (a @ region.x[..., None]).squeeze(-1) + b, replace(region, cuts=None).minimum(a, b), sane)


def optimise(
    network: Network,
    region: Region,
    bounds: LayerBounds,
    rows: Float[Tensor, "n k outputs"],
    *,
    splits: Bool[Tensor, "n neurons"] | None = None,
    start: Choice | None = None,
    iterations: int = 20,
    enough: Float[Tensor, " n"] | None = None,
    layer: int | None = None,
    fast: Network | None = None,
    rate: tuple[float, float] = RATE,
) -> Optimised:
    """Raise the lower bounds of `rows` over the region by Adam on alpha and beta; the best seen of each row is kept.

    No row ends below its start, up to the rounding of float32. Row i depends on domain i alone.

    Args:
        network: the network, in float64.
        region: balls over which the minimum is raised, inside those on which `bounds` hold.
        bounds: bounds of the hidden layers before `layer`, with an end at the point where a neuron is split (0 in ReLU
            networks).
        rows: linear functions of the outputs of `layer`.
        splits: neurons whose multiplier is optimised; none by default.
        start: the first choice; CROWN's slopes by default.
        iterations: steps of Adam.
        enough: domains whose bounds all exceed this are left alone from then on.
        layer: the layer that is bounded; by default the last one, which gives the logits.
        fast: the same network in float32, made here if missing.
        rate: first steps in alpha and in beta.
    """
    n, k = rows.shape[:2]
    layer = len(network.layers) - 1 if layer is None else layer
    if layer < len(network.hidden):
        bounds = bounds.upto(layer)
    if n == 0 or k == 0 or list(network.layers[layer].maps) == [0]:  # there is no line to choose
        sizes = (0, 0) if layer == 0 else (sum(widths(network, bounds)), sum(neurons(bounds)))
        none = Choice(*(rows.new_zeros(n, k, size) for size in sizes))
        return evaluate(network, region, bounds, rows, none, layer)
    start = Choice.crown(network, bounds, k) if start is None else start
    climber = _Climber(
        network.to(torch.float32) if fast is None else fast, region, bounds, rows, splits, start, layer, rate
    )
    found = climber.run(iterations, enough)
    return evaluate(network, region, bounds, rows, found, layer)


def optimised_bounds(
    network: Network,
    region: Region,
    bounds: LayerBounds,
    *,
    iterations: int = 10,
    fast: Network | None = None,
    entries: int = 2**22,
    errors: Sequence[Tensor] | None = None,
) -> LayerBounds:
    """Sharpen the bounds of unstable neurons, layer by layer, each with slopes of its own (Xu et al., 2021).

    Args:
        network: the network, in float64.
        region: the balls.
        bounds: bounds of all hidden layers over them.
        iterations: steps of Adam.
        fast: the same network in float32.
        entries: largest number of slopes held at once.
        errors: largest effect of rounding on a bound, by layer; each bound is widened by it before it is used.
    """
    fast = network.to(torch.float32) if fast is None else fast
    lower, upper = [*bounds.lower], [*bounds.upper]
    for i in range(1, len(lower)):
        if i in network.copied:
            continue
        so_far = LayerBounds(tuple(lower[:i]), tuple(upper[:i]), "alpha-crown")
        open_ = undecided(network.activation(i), lower[i], upper[i])
        order = open_.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, : int(open_.sum(dim=1).max())]
        size = max(1, entries // (2 * max(len(region), 1) * sum(end.shape[1] for end in lower[:i])))
        for some in torch.split(order, size, dim=1):  # its own neurons of each input; some of the last are stable
            rows = torch.zeros(len(region), 2 * some.shape[1], network.layers[i].outputs).to(region.x)
            rows[:, : some.shape[1]].scatter_(2, some[..., None], 1.0)
            rows[:, some.shape[1] :].scatter_(2, some[..., None], -1.0)
            found = optimise(network, region, so_far, rows, iterations=iterations, layer=i, fast=fast).lower
            found = found.nan_to_num(-math.inf)
            if errors is not None:
                found = found - torch.cat([errors[i].gather(1, some)] * 2, dim=1)
            low, high = found[:, : some.shape[1]], -found[:, some.shape[1] :]
            before = lower[i].gather(1, some), upper[i].gather(1, some)
            counts = open_.gather(1, some)
            lower[i] = lower[i].scatter(1, some, torch.where(counts, torch.maximum(before[0], low), before[0]))
            upper[i] = upper[i].scatter(1, some, torch.where(counts, torch.minimum(before[1], high), before[1]))
    return LayerBounds(tuple(lower), tuple(upper), "alpha-crown")


class _Climber:
    """Adam on the choices of a batch of domains, each for itself. It works in float32 and proves nothing."""

    def __init__(
        self,
        network: Network,
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
        self.region = replace(region, x=region.x.to(dtype), eps=region.eps.to(dtype), cuts=None)
        self.rows = rows.to(dtype)
        self.alpha = start.alpha.to(dtype).clone()
        self.sizes = widths(network, bounds)
        self.ends = [(low.to(dtype), high.to(dtype)) for low, high in ends(bounds)]
        small = LayerBounds(tuple(low for low, _ in self.ends), tuple(high for _, high in self.ends), bounds.method)
        self.relus = [network.activation(i) == RELU for i in range(len(self.ends))]
        self.pure, self.neurons = all(self.relus), neurons(small)
        self.sign = known_signs(network, small)
        self.free = self.sign == 0
        self.above = [upper_line(*end) if relu else None for end, relu in zip(self.ends, self.relus, strict=True)]
        # Only the columns of neurons that are split somewhere have multipliers.
        none = torch.zeros(len(self.free), sum(self.neurons), dtype=torch.bool, device=self.free.device)
        split = none if splits is None else splits & ~self.free if self.pure else splits
        self.columns = split.any(dim=0).nonzero().squeeze(1)
        self.split = split[:, self.columns][:, None].to(dtype)
        self.beta = start.beta[..., self.columns].to(dtype)
        self.unit = torch.ones_like(self.beta)
        if len(self.columns):
            whole = Choice(self.alpha, start.beta.to(dtype))
            self.unit = units(network, small, self.rows, whole, layer)[..., self.columns]

    def run(self, iterations: int, enough: Tensor | None) -> Choice:
        """Return the best choice that was seen for each row."""
        n, k = self.rows.shape[:2]
        index = torch.arange(n, device=self.rows.device)
        best = torch.full((n, k), -math.inf, dtype=self.rows.dtype, device=self.rows.device)
        done = torch.zeros(n, dtype=torch.bool, device=self.rows.device)
        kept = [self.alpha.clone(), self.beta.clone()]
        now = [self.alpha, self.beta] if len(self.columns) else [self.alpha]
        moments = [(torch.zeros_like(part), torch.zeros_like(part)) for part in now]
        decay = min(max(0.03 ** (1 / max(iterations, 1)), DECAY[0]), DECAY[1])
        frame = self.frame(index)
        for step in range(iterations + 1):
            with torch.enable_grad():
                for part in now:
                    part.requires_grad_()
                value = self.value(frame, *now)
                gradients = torch.autograd.grad(value.sum(), now) if step < iterations else ()
            now, value = [part.detach() for part in now], value.detach()
            better = (value > best[index]) & ~done[index][:, None]
            best[index] = torch.where(better, value, best[index])
            for store, part in zip(kept, now, strict=False):
                store[index] = torch.where(better[..., None], part, store[index])
            if step == iterations:
                break
            units = [frame["free"], frame["unit"]]
            for i, gradient in enumerate(gradients):
                # One step of Adam (Kingma and Ba, 2015), projected onto [0, 1] and onto [0, inf).
                gradient = (gradient * units[i]).nan_to_num_(0.0)
                first, second = moments[i]
                first.lerp_(gradient, 0.1)
                second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                length = (second / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-12)
                move = (self.rate[i] * decay**step / (1 - 0.9 ** (step + 1))) * first / length
                least = 0.0 if i == 0 or self.pure else -math.inf
                now[i] = (now[i] + move * units[i]).clamp_(least, 1.0 if i == 0 else math.inf)
            if enough is not None:
                done |= (best > enough.to(best)[:, None]).all(dim=1)
                short = ~done[index]
                if not bool(short.any()):
                    break
                if int(short.sum()) < 0.8 * len(index):  # copying costs, and what is done changes no more
                    index = index[short]
                    now, moments = [part[short] for part in now], [(m[short], v[short]) for m, v in moments]
                    frame = self.frame(index)
        beta = kept[0].new_zeros(n, k, sum(self.neurons))
        beta[..., self.columns] = kept[1]
        return Choice(kept[0], beta)

    def frame(self, index: Tensor) -> dict[str, Any]:
        """Collect what a step needs of some of the domains, by layer where layers use it."""
        low = self.sign[index][:, None]
        return {
            "region": self.region[index],
            "rows": self.rows[index],
            "active": torch.split((low > 0).to(self.rows), self.sizes, dim=-1),
            "mask": torch.split(low == 0, self.sizes, dim=-1),
            "free": (low == 0).to(self.rows),
            "ends": [(a[index], b[index]) for a, b in self.ends],
            "families": [
                None if relu else Family.of(self.network.activation(i), a[index], b[index])
                for i, ((a, b), relu) in enumerate(zip(self.ends, self.relus, strict=True))
            ],
            "above": [None if line is None else tuple(part[index][:, None] for part in line) for line in self.above],
            "unit": self.unit[index] * self.split[index],
            "against": -low[..., self.columns] * self.split[index] if self.pure else self.split[index],
        }

    def value(self, frame: dict[str, Any], alpha: Tensor, beta: Tensor | None = None) -> Tensor:
        """Return the minima over the region; their gradient is taken at the fixed minimiser (Danskin's theorem)."""
        slopes = torch.split(alpha, self.sizes, dim=-1)
        extra = None
        if beta is not None:
            whole = alpha.new_zeros(*alpha.shape[:2], sum(self.neurons))
            extra = torch.split(whole.index_copy(-1, self.columns, beta * frame["against"]), self.neurons, dim=-1)
        z: Tensor = frame["rows"]
        pulled: dict[int, Tensor] = {}
        constant = z.new_zeros(z.shape[:2])
        at = self.layer
        while True:
            part = self.network.layers[at]
            constant = constant + z @ part.bias
            for source, step in part.maps.items():
                moved = step.transpose(z.flatten(0, 1)).view(*z.shape[:2], -1)
                pulled[source] = pulled[source] + moved if source in pulled else moved
            at = max(pulled)
            if at == 0:
                break
            h, at = pulled.pop(at), at - 1
            if self.relus[at]:
                slope, offset = frame["above"][at]
                below = torch.where(frame["mask"][at], slopes[at], frame["active"][at])
                lines = Lines(below, None, slope, offset)
            else:
                lines = frame["families"][at].chosen(slopes[at])
            z, moved = through(lines, h)
            constant = constant + moved
            if extra is not None:
                z = z + extra[at]
                if not self.pure:
                    low, high = frame["ends"][at]
                    constant = constant - largest(extra[at], low[:, None], high[:, None]).sum(dim=-1)
        region, a = frame["region"], pulled[0]
        with torch.no_grad():
            point = region.x[:, None] + steepest(a, region.threat, region.x, region.eps)
        value: Tensor = (a * point).sum(dim=-1) + constant
        return value


@torch.no_grad()
def coefficients(
    network: Network, bounds: LayerBounds, rows: Float[Tensor, "n k outputs"], choice: Choice, layer: int
) -> tuple[list[Float[Tensor, "n k _"]], list[Float[Tensor, "n k _"]]]:
    """Return the coefficients in the backward pass of each activation's outputs, and of its inputs through the lines.

    They serve scores and units, not bounds.
    """
    pure, sizes = is_pure(network, bounds), neurons(bounds)
    slopes = torch.split(choice.alpha, widths(network, bounds), dim=-1)
    against = -known_signs(network, bounds)[:, None] * choice.beta.clamp(min=0) if pure else choice.beta
    terms = torch.split(against, sizes, dim=-1)
    halves = [2 if isinstance(network.activation(i), Bilinear) else 1 for i in range(len(sizes))]
    found = [rows.new_zeros(*rows.shape[:2], size // half) for size, half in zip(sizes, halves, strict=True)]
    z, pulled = rows, [rows.new_zeros(*rows.shape[:2], size) for size in sizes]
    for at in range(layer, -1, -1):
        if at < layer:
            low, high = bounds.lower[at], bounds.upper[at]
            if network.activation(at) == RELU:
                low, high, h = low[:, None], high[:, None], found[at]
                z = h.clamp(min=0) * lower_slope(low, high, slopes[at]) + h.clamp(max=0) * upper_line(low, high)[0]
            else:
                z = through(chosen(network.activation(at), low, high, slopes[at]), found[at])[0]
            pulled[at] = z
            z = z + terms[at]
        for source, part in network.layers[at].maps.items():
            if source > 0:
                found[source - 1] = found[source - 1] + part.transpose(z.flatten(0, 1)).view(*z.shape[:2], -1)
    return found, pulled


def units(
    network: Network, bounds: LayerBounds, rows: Float[Tensor, "n k outputs"], choice: Choice, layer: int
) -> Float[Tensor, "n k neurons"]:
    """Return the largest coefficient of each neuron's layer, which is the unit of its multiplier.

    It is that of the outputs of ReLUs, whose slopes are 1, and of the inputs of other functions.
    """
    parts = coefficients(network, bounds, rows, choice, layer)[0 if is_pure(network, bounds) else 1]
    most = [part.abs().amax(dim=-1, keepdim=True) for part in parts]
    spread = [part.expand(-1, -1, size) for part, size in zip(most, neurons(bounds), strict=True)]
    return torch.cat(spread, dim=-1).clamp(min=1e-12)
