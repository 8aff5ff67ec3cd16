"""Leaves of a branch-and-bound tree: they are bounded in batches, split, and searched for counterexamples.

In a ReLU network a neuron is split at 0, once. In others the interval of a pre-activation is split at any point, as
often as it helps, and the layers behind it are bounded anew in each leaf. The file is long because all this shares one
list of leaves.
"""

import heapq
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.attacks.frank_wolfe import Closest
from certbench.core import ball
from certbench.core.ball import steepest
from certbench.core.claims import Outcome
from certbench.core.evidence import Evidence
from certbench.core.threat import ThreatModel
from certbench.networks.layers import Network
from certbench.verifiers.bounds.backward import layer_bounds
from certbench.verifiers.bounds.optimise import (
    Choice,
    Optimised,
    evaluate,
    flat,
    neurons,
    optimise,
    optimised_bounds,
)
from certbench.verifiers.bounds.region import LayerBounds, Region
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.complete.branching import best_neurons
from certbench.verifiers.complete.cuts import ANEW, Cuts, best_cuts, cut_bounds, first_behind, half_spaces, places_of
from certbench.verifiers.complete.leaf_programs import Programs, closest_point
from certbench.verifiers.complete.leaves import Batch, Leaf

NEAR, WORK, SMALL = 0.99, 1e5, 1500
"""Limits for trying programs. They are tried at linear leaves; at leaves whose radius is the share `NEAR` of the goal,
if the entries of the network times the leaves of the batch are at most `WORK`; and at all leaves of networks with at
most `SMALL` entries. Judgements: a program of 6000 entries takes as long as some ten leaves in a large batch."""


TRIES = 6
"""Number of times that an open leaf is bounded when all its signs are known, twice as long each time. If it then is
still open, rounding is the reason: the allowance keeps the radius below the counterexample's distance."""


LIMIT = 1e4
"""Largest radius that is searched where the domain has no end, in units of the input's size (see `ball.size`)."""


@dataclass(frozen=True)
class Answer:
    """One row of a certificate."""

    prediction: int
    radius: float
    upper: float
    outcome: Outcome
    evidence: Evidence
    point: Tensor | None = None
    """Closest counterexample that was found, flat."""


def widest(threat: ThreatModel, x: Tensor) -> tuple[float, bool]:
    """Return the largest radius that is tried, and whether its ball holds the whole domain.

    It is the distance of the domain's farthest point, or a limit where the domain has no end, or none is given.
    """
    low, high = threat.ends(x)
    way = torch.maximum(x - low, high - x).flatten()
    farthest = float(torch.linalg.vector_norm(way, ord=threat.p)) * (1 + 1e-12)
    if math.isfinite(farthest):
        return farthest, True
    return LIMIT * float(ball.size(x.flatten(1))), False


@dataclass(frozen=True)
class TreeOptions:
    """Options for the growth of a tree; `BranchAndBound` explains each."""

    domains: int
    iterations: int
    candidates: int
    relative: float
    eps: float | None


class Tree:
    """The leaves of one input, and the facts proved about them."""

    def __init__(
        self,
        options: TreeOptions,
        state: NetworkState,
        fast: Network,
        rows: Float[Tensor, "k outputs"],
        slack: float,
        scale: float,
        found: Closest,
        deadline: float,
    ) -> None:
        """Make one leaf per class."""
        self.options, self.network, self.fast, self.threat = options, state.network, fast, state.threat
        self.x, self.rows, self.slack, self.scale = found.x, rows, slack, scale
        self.found, self.deadline = found, deadline
        none = torch.zeros(0, dtype=torch.int64, device=self.x.device)
        self.pure = not self.network.activations
        self.leaves = [Leaf(0.0, j, j, none, none, none.to(self.x)) for j in range(len(rows))]
        self.count, self.bounded, self.splits = len(self.leaves), 0, 0
        self.eps, self.method, self.tight = 0.0, "none", False  # of the present level
        self.bounds: LayerBounds | None = None
        self.limit, self.whole = widest(self.threat, self.x)
        self.programs = Programs(self.network, self.threat, self.x)
        self.polished = math.inf

    @property
    def radius(self) -> float:
        """The radius that is proved: the least over all leaves; infinity if it is the whole domain."""
        least = self.leaves[0].radius if self.leaves else math.inf
        if least < self.limit:
            return least
        return math.inf if self.whole else self.limit

    @property
    def open(self) -> int:
        """Number of leaves that are not finished."""
        return sum(leaf.radius < self.target for leaf in self.leaves)

    @property
    def target(self) -> float:
        """The radius at which a leaf is finished."""
        if self.options.eps is not None:
            return self.options.eps
        return min(self.limit, self.found.distance * (1 - self.options.relative))

    def grow(self) -> bool:
        """Bound, split and look for counterexamples until the input is decided, time is up, or rounding stops it.

        Returns:
            Whether the input is decided.
        """
        while True:
            self.polish()
            if self.options.eps is not None and self.found.distance <= self.options.eps:
                return True
            if self.leaves[0].radius >= self.target:
                return True
            if time.perf_counter() > self.deadline:
                return False
            self.choose_level()
            batch = self.take()
            old = [leaf for leaf in batch if leaf.level < self.eps]
            again = [leaf for leaf in batch if leaf.level >= self.eps]
            if again and not self.tight:
                self.tighten()
                self.bound(again + old, self.options.iterations)
                continue
            children, stuck = self.split(again)
            self.bound(old + children, self.options.iterations)
            if stuck and not old and not children and min(leaf.tries for leaf in stuck) >= TRIES:
                for leaf in stuck:
                    self.put(leaf)
                return False
            if stuck:
                tries = max(leaf.tries for leaf in stuck)
                self.bound(stuck, min(self.options.iterations * 2 ** min(tries, 6), 1000))

    def choose_level(self) -> None:
        """Choose the ball over which leaves are bounded: half way to the counterexample, at last the whole way."""
        least = self.leaves[0].radius
        top = min(self.found.distance, self.limit)
        if self.options.eps is not None:
            level = self.options.eps
        elif math.isinf(self.found.distance):
            level = min(max(2 * least, self.limit / 1024), self.limit)
        else:
            level = top if least >= 0.95 * top else (least + top) / 2
        if self.bounds is not None and least < min(self.eps, self.target) and level >= 0.98 * self.eps:
            return  # work is left at this level
        region = Region(self.threat, self.x, self.x.new_full((1,), level))
        known = self.bounds if self.bounds is not None and level <= self.eps else None
        self.bounds = layer_bounds(self.network, region, "crown", known)
        self.eps, self.method, self.tight = level, self.bounds.method, False

    def tighten(self) -> None:
        """Optimise the bounds of the hidden layers, before any leaf is split at this level."""
        assert self.bounds is not None
        if self.pure or sum(neurons(self.bounds)) <= ANEW:
            self.bounds = optimised_bounds(self.network, self.region(1), self.bounds, fast=self.fast)
        self.method, self.tight = self.bounds.method, True

    def take(self) -> list[Leaf]:
        """Take the leaves of the least radii that are not finished at this level."""
        batch: list[Leaf] = []
        goal = min(self.eps, self.target)
        while self.leaves and len(batch) < self.options.domains and self.leaves[0].radius < goal:
            batch.append(heapq.heappop(self.leaves))
        return batch

    def put(self, leaf: Leaf) -> None:
        """Keep a leaf."""
        heapq.heappush(self.leaves, leaf)

    def assemble(self, leaves: Sequence[Leaf], anew: bool = False) -> Batch:
        """Put leaves side by side. With `anew`, the layers behind new cuts are bounded with them."""
        assert self.bounds is not None
        region = self.region(len(leaves))
        low, high = (end.repeat(len(leaves), 1) for end in flat(self.bounds))
        owner = torch.repeat_interleave(torch.tensor([len(leaf.neurons) for leaf in leaves])).to(self.x.device)
        neuron, sign = (torch.cat([getattr(leaf, name) for leaf in leaves]) for name in ("neurons", "signs"))
        split = torch.zeros_like(low, dtype=torch.bool)
        split[owner, neuron] = True
        sizes = neurons(self.bounds)
        if self.pure:
            low[owner, neuron] = torch.where(sign > 0, low[owner, neuron].clamp(min=0), low[owner, neuron])
            high[owner, neuron] = torch.where(sign < 0, high[owner, neuron].clamp(max=0), high[owner, neuron])
            bounds = LayerBounds(torch.split(low, sizes, dim=1), torch.split(high, sizes, dim=1), self.bounds.method)
            empty = (low > high).any(dim=1)
        else:
            first = len(sizes)
            for i, leaf in enumerate(leaves):
                if leaf.ends is not None and leaf.reach >= self.eps:
                    low[i], high[i] = torch.maximum(low[i], leaf.ends[0]), torch.minimum(high[i], leaf.ends[1])
                    first = min(first, leaf.first)
                elif len(leaf.neurons):
                    first = min(first, *(first_behind(self.network, at) for at in leaf.neurons.tolist()))
            bounds = LayerBounds(torch.split(low, sizes, dim=1), torch.split(high, sizes, dim=1), self.bounds.method)
            cuts = Cuts(owner, neuron, sign, torch.cat([leaf.points for leaf in leaves]))
            region = replace(region, cuts=half_spaces(self.network, region.x, cuts))
            bounds, empty = cut_bounds(self.network, region, bounds, cuts, first if anew else None, self.slack)
        start = Choice.crown(self.network, bounds, 1, len(leaves))
        alpha, beta = start.alpha[:, 0].clone(), start.beta[:, 0].clone()
        for i, leaf in enumerate(leaves):
            if leaf.alpha is not None and leaf.beta is not None:
                alpha[i] = torch.where(leaf.alpha.isnan(), alpha[i], leaf.alpha.to(alpha))
                beta[i, leaf.neurons] = leaf.beta.to(beta)
        rows = self.rows[torch.tensor([leaf.row for leaf in leaves], device=self.x.device)][:, None]
        return Batch(region, bounds, Choice(alpha[:, None], beta[:, None]), split, rows, empty)

    def region(self, n: int) -> Region:
        """Return the ball of this level, n times."""
        return Region(self.threat, self.x.expand(n, -1), self.x.new_full((n,), self.eps))

    def radii(self, made: Optimised) -> Float[Tensor, " n"]:
        """Return the radii up to which the linear functions prove the margins, inside the ball of this level."""
        margin = made.centre - self.slack
        crossing = ball.crossing(made.a, margin, self.threat, self.x.expand(len(margin), -1)).squeeze(1)
        holds = made.lower.squeeze(1) > self.slack
        return torch.where(holds, self.eps, crossing.clamp(max=self.eps))

    def bound(self, leaves: list[Leaf], iterations: int) -> None:
        """Bound leaves, put them back, and offer their minimisers as counterexamples."""
        for at in range(0, len(leaves), self.options.domains):
            part = leaves[at : at + self.options.domains]
            batch = self.assemble(part, anew=True)
            bounds, rows, empty = batch.bounds, batch.rows, batch.empty
            made = self.climb(batch, iterations)
            radii = torch.where(empty, self.eps, self.radii(made))  # empty in this ball; beyond it nothing is known
            self.bounded += len(part)
            self.candidates(made, radii)
            low, high = flat(bounds, len(part))
            unstable = ((low < 0) & (high > 0)).any(dim=1)
            for i, leaf in enumerate(part):
                radius = max(leaf.radius, float(radii[i]))
                if radius < self.target:
                    near = radius >= NEAR * min(self.target, self.eps) and len(part) * self.programs.entries <= WORK
                    if near or not bool(unstable[i]) or self.programs.entries <= SMALL:
                        exact = self.exact(low[i], high[i], bounds[i : i + 1], rows[i : i + 1], bool(unstable[i]))
                        radius = max(radius, exact)
                leaf.tries = leaf.tries + 1 if leaf.level >= self.eps else 0
                leaf.radius, leaf.level = radius, max(self.eps, leaf.level)
                leaf.alpha = made.choice.alpha[i, 0].half()
                leaf.beta = made.choice.beta[i, 0, leaf.neurons].float()
                if not self.pure:
                    leaf.ends, leaf.reach, leaf.first = (low[i], high[i]), self.eps, len(bounds.lower)
                self.put(leaf)

    def climb(self, batch: Batch, iterations: int) -> Optimised:
        """Optimise the bounds of leaves; where there are half-spaces, of those alone that are short at the start."""
        enough = self.slack + 1e-6 * self.scale
        made = None if self.pure else evaluate(self.network, batch.region, batch.bounds, batch.rows, batch.start)
        short = torch.arange(len(batch.rows)) if made is None else (made.lower[:, 0] <= enough).nonzero().squeeze(1)
        if made is not None and len(short) == 0:
            return made
        found = optimise(
            self.network,
            batch.region[short],
            batch.bounds[short],
            batch.rows[short],
            splits=batch.split[short],
            start=batch.start[short],
            iterations=iterations,
            enough=self.x.new_full((len(short),), enough),
            fast=self.fast,
        )
        if made is None:
            return found
        place = (found.lower[:, 0] > made.lower[short, 0]).nonzero().squeeze(1)

        def merged(old: Tensor, new: Tensor) -> Tensor:
            return old.clone().index_copy_(0, short[place], new[place])

        choice = Choice(merged(made.choice.alpha, found.choice.alpha), merged(made.choice.beta, found.choice.beta))
        return Optimised(
            merged(made.a, found.a), merged(made.centre, found.centre), merged(made.lower, found.lower), choice
        )

    def candidates(self, made: Optimised, radii: Tensor) -> None:
        """Offer the points where the linear functions are least; outside the leaf, too, a counterexample counts."""
        short = radii < self.target
        if bool(short.any()):
            a, x = made.a[short], self.x.expand(int(short.sum()), -1)
            whole = steepest(a, self.threat, x, self.x.new_full((len(x),), self.eps)).squeeze(1)
            edge = steepest(a, self.threat, x, radii[short] * (1 + 1e-7)).squeeze(1)
            self.found.offer(torch.cat([x + whole, x + edge]))

    def exact(self, low: Tensor, high: Tensor, bounds: LayerBounds, row: Tensor, unstable: bool) -> float:
        """Return the radius that a program proves of a leaf, 0 if none."""
        if not self.programs.affordable or time.perf_counter() > self.deadline:
            return 0.0
        if self.threat.p != 2:
            solved = self.programs.solve(low, high, row[0, 0], self.eps)
        elif unstable:
            return 0.0
        else:
            sign = torch.where(low >= 0, 1.0, -1.0).to(low)
            solved = self.programs.project(sign, row[0, 0], self.eps)
        if solved is None:
            return 0.0
        choice, point = solved
        made = evaluate(self.network, self.region(1), bounds, row, choice)
        way = point - self.x[0]
        steps = torch.tensor([0.0, 1e-9, 1e-8, 1e-7, 1e-6], dtype=way.dtype, device=way.device)
        self.found.offer(self.x + way * (1 + steps[:, None]))
        return float(self.radii(made)[0])

    def polish(self) -> None:
        """Move the closest counterexample to the nearest point of its linear piece, and on into the next piece."""
        if self.options.eps is not None or not self.programs.affordable:
            return
        for _ in range(4):
            if self.found.point is None or self.found.distance >= self.polished or time.perf_counter() > self.deadline:
                return
            self.polished = self.found.distance
            z = self.network.preactivations(self.found.point[None])
            sign = torch.where(torch.cat([self.x.new_zeros(1, 0), *z[:-1]], dim=1)[0] > 0, 1.0, -1.0).to(self.x)
            worst = int((self.rows @ z[-1][0]).argmin())
            beyond = 1e-12 * self.scale
            point = closest_point(self.programs, sign, self.rows[worst], self.found.distance, beyond)
            if point is None:
                return
            way = point - self.x[0]
            steps = torch.tensor([0.0, 1e-9, 1e-8, 1e-7, 1e-6], dtype=way.dtype, device=way.device)
            self.found.offer(self.x + way * (1 + steps[:, None]))

    def split(self, leaves: list[Leaf]) -> tuple[list[Leaf], list[Leaf]]:
        """Return both children of each leaf, split at the most promising neuron, and the leaves that have none left."""
        if not leaves:
            return [], []
        _, bounds, choice, _, rows, _ = self.assemble(leaves)
        if self.pure:
            chosen = best_neurons(self.fast, self.region, bounds, choice, rows, self.options.candidates)
            points = torch.zeros(len(leaves), dtype=torch.float64)
        else:
            chosen, points = best_cuts(self.fast, self.region, bounds, choice, rows, self.options.candidates)
        children, stuck = [], []
        for leaf, neuron, point in zip(leaves, chosen.tolist(), points.tolist(), strict=True):
            if neuron < 0:
                stuck.append(leaf)
                continue
            self.splits += 1
            for sign in (1, -1):
                children.append(self.child(leaf, neuron, sign, point))
        return children, stuck

    def child(self, leaf: Leaf, neuron: int, sign: int, point: float) -> Leaf:
        """Return the part of a leaf where sign (z - point) >= 0."""
        assert leaf.beta is not None and leaf.alpha is not None and self.bounds is not None
        others = ~((leaf.neurons == neuron) & (leaf.signs == sign))  # an earlier cut on this side says less
        before, alpha, first = leaf.beta[leaf.neurons == neuron][:1], leaf.alpha, 0
        if not self.pure:
            alpha = alpha.clone()
            alpha[places_of(neuron, self.network, self.bounds)] = math.nan
            first = min(leaf.first, first_behind(self.network, neuron))
        self.count += 1
        return Leaf(
            leaf.radius,
            self.count - 1,
            leaf.row,
            torch.cat([leaf.neurons[others], leaf.neurons.new_tensor([neuron])]),
            torch.cat([leaf.signs[others], leaf.signs.new_tensor([sign])]),
            torch.cat([leaf.points[others], leaf.points.new_tensor([point])]),
            alpha=alpha,
            beta=torch.cat([leaf.beta[others], before if len(before) else leaf.beta.new_zeros(1)]),
            ends=leaf.ends,
            reach=leaf.reach,
            first=first,
        )
