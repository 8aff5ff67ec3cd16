"""Counterexamples of complete certifiers, by steps of Frank and Wolfe (1956; Jaggi, 2013) inside a ball.

A step moves a point towards the vertex of the ball that the gradient chooses, by a share that falls to zero. So points
stay inside the ball and the domain without projections. A search works on one input at a time, so nothing
depends on neighbours; `Closest` replays every point in float64 before it counts.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certbench.attacks.walk import distance, walk_back
from certbench.core import ball
from certbench.core.classifier import Classifier
from certbench.core.margins import clean_margin
from certbench.core.threat import ThreatModel

Objective = Callable[[Float[Tensor, "m d"]], Float[Tensor, " m"]]
"""A function that gives one number for each point."""

Shares = Sequence[tuple[float, float]]
"""Share of the way of each step, as a numerator and a denominator."""

ROUNDS, STEPS = 8, 10
"""Number of balls of `negative_points`, and of steps in each. A judgement."""


def slopes(objective: Objective, points: Float[Tensor, "m d"]) -> tuple[Float[Tensor, " m"], Float[Tensor, "m d"]]:
    """Return the values at the points, and their gradients: zero where the values do not depend on the points."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        values = objective(points)
        if not values.requires_grad:
            return values, torch.zeros_like(points)
        (slope,) = torch.autograd.grad(values.sum(), points)
    return values.detach(), slope


def steepest_step(
    a: Float[Tensor, "m d"], radius: Float[Tensor, " m"], threat: ThreatModel, x: Float[Tensor, "#m d"]
) -> Float[Tensor, "m d"]:
    """Return the step, no longer than the radius, on which each linear function falls most inside the domain."""
    return ball.steepest(a[:, None], threat, x.expand(len(a), -1), radius)[:, 0]


def frank_wolfe(
    objective: Objective,
    vertex: Callable[[Float[Tensor, "m d"]], Float[Tensor, "m d"]],
    start: Float[Tensor, "m d"],
    shares: Shares,
) -> Iterator[tuple[Float[Tensor, "m d"], Float[Tensor, " m"]]]:
    """Lower an objective, step by step.

    Args:
        objective: the function to lower.
        vertex: function from a gradient to the point of the feasible set that it chooses.
        start: feasible points.
        shares: share of the way of each step.

    Yields:
        The points and their values, at the start and after each step.
    """
    at = start
    for numerator, denominator in shares:
        values, slope = slopes(objective, at)
        yield at, values
        at = at + (vertex(slope) - at) * numerator / denominator
    yield at, objective(at).detach()


def harmonic(steps: int) -> Shares:
    """Return the shares 2 / (k + 2) of Frank and Wolfe."""
    return [(2, step + 2) for step in range(steps)]


def falling(steps: int) -> Shares:
    """Return shares that are 1 in the first step, and then fall from 1/2 to zero in equal parts."""
    return [(0.5 * (1 - step / (steps + 1)) if step else 1.0, 1.0) for step in range(steps)]


@torch.no_grad()
def negative_points(
    objective: Objective, x: Float[Tensor, "1 d"], count: int, threat: ThreatModel
) -> Float[Tensor, "k d"]:
    """Return, for each of `count` functions, a point near x at which it is negative, or x if none is found.

    The balls shrink after a success, and grow after a failure. The search is deterministic.

    Args:
        objective: takes `count` points, and gives the value of each function at its point.
        x: the input, flat.
        count: the number of functions.
        threat: the norm and the domain.
    """
    start = x.expand(count, -1)
    best, nearest = start.clone(), x.new_full((count,), math.inf)
    margin, slope = slopes(objective, best)
    reach = ball.crossing(slope[None], margin[None], threat, x)[0]
    usable = reach[reach.isfinite() & (reach > 0)]
    radius = torch.where(reach.isfinite() & (reach > 0), reach, usable.min() if len(usable) else 0.1) * 1.2
    for _ in range(ROUNDS):
        before = nearest
        for points, values in frank_wolfe(objective, partial(_vertex, x, radius, threat), start, harmonic(STEPS)):
            length = torch.linalg.vector_norm(points - x, ord=threat.p, dim=1)
            closer = (values < 0) & (length < nearest)
            best, nearest = torch.where(closer[:, None], points, best), torch.where(closer, length, nearest)
        between = torch.where(nearest.isfinite(), (radius + nearest) / 2, radius * 1.5)
        radius = torch.where(nearest < before, 0.85 * nearest, between)
    return best


def _vertex(x: Tensor, radius: Tensor, threat: ThreatModel, slope: Tensor) -> Tensor:
    return x + steepest_step(slope, radius, threat, x)


@dataclass(eq=False)
class Closest:
    """The closest counterexample of one input so far.

    Attributes:
        classifier: the classifier, in float64.
        threat: the norm and the domain.
        x: the input, flat.
        label: its class.
        distance: distance of the closest counterexample, rounded up; inf if none is known.
        point: the closest counterexample.
    """

    classifier: Classifier
    threat: ThreatModel
    x: Float[Tensor, "1 d"]
    label: int
    distance: float = math.inf
    point: Float[Tensor, " d"] | None = None

    def wrong(self, points: Float[Tensor, "m d"]) -> Bool[Tensor, " m"]:
        """Say at which points another class is strictly larger."""
        logits = self.classifier(points.view(-1, *self.classifier.input_shape))
        margin = clean_margin(logits, torch.full((len(points),), self.label, device=points.device))
        return (margin < 0) & logits.isfinite().all(dim=1)

    def offer(self, points: Float[Tensor, "m d"], rounds: int = 30) -> bool:
        """Search the segments from the input to those points that are counterexamples for a closer one.

        Returns:
            Whether a closer one was found.
        """
        points = self.threat.clamp(points)
        points = points[points.isfinite().all(dim=1)]
        points = points[self.wrong(points)] if len(points) else points
        if len(points) == 0:
            return False
        points = walk_back(self.wrong, self.x, points, rounds=rounds, domain=self.threat.ends(self.x))
        length = distance(self.threat, self.x, points)
        best = int(length.argmin())
        if not float(length[best]) < self.distance:
            return False
        self.distance, self.point = float(length[best]), points[best]
        return True

    def descend(
        self, eps: float, targets: Int[Tensor, " m"], start: Float[Tensor, "m d"], steps: int = 30, rounds: int = 30
    ) -> bool:
        """Lower f_label - f_target over the ball from each start, and offer the lowest point of each descent.

        Args:
            eps: the radius of the ball.
            targets: a class for each start.
            start: steps away from the input, inside the ball.
            steps: number of steps of each descent.
            rounds: number of rounds of the walk back.

        Returns:
            Whether a closer counterexample was found.
        """

        def margin(delta: Tensor) -> Tensor:
            logits = self.classifier.module((self.x + delta).view(-1, *self.classifier.input_shape))
            difference: Tensor = logits[:, self.label] - logits.gather(1, targets[:, None]).squeeze(1)
            return difference

        radius = self.x.new_full((len(start),), eps)
        best, lowest = start.clone(), self.x.new_full((len(start),), math.inf)
        vertex = partial(steepest_step, radius=radius, threat=self.threat, x=self.x)
        for delta, values in frank_wolfe(margin, vertex, start, falling(steps)):
            lower = values < lowest
            lowest, best = torch.where(lower, values, lowest), torch.where(lower[:, None], delta, best)
        return self.offer(self.x + best, rounds)

    def approach(self, classes: int, guess: float, limit: float, seed: int, steps: int = 30) -> None:
        """Search for close counterexamples in a ball that first grows and then shrinks; every other class is a target.

        Args:
            classes: the number of classes.
            guess: the radius of the first ball, if it is positive and finite.
            limit: the radius of the largest ball.
            seed: seed of the starts.
            steps: number of steps of each descent.
        """
        targets, start = self.others(classes)
        eps = min(guess, limit) if 0 < guess < math.inf else limit / 64
        for _ in range(40):
            if self.descend(eps, targets, start, steps) or eps >= limit:
                break
            eps = min(eps * 1.5, limit)
        generator = torch.Generator().manual_seed(seed % 2**63)
        failures = 0
        while self.distance < math.inf and failures < 3:
            eps = 0.98 * self.distance
            corner = self.corner(generator, start, eps)
            assert self.point is not None
            near = (self.point - self.x) * 0.98
            again = torch.cat([near.expand(2, -1), start, 0.5 * (near + corner)])
            guilty = int(self.classifier(self.point.view(1, *self.classifier.input_shape)).argmax())
            aims = torch.cat([targets.new_full((2,), guilty), targets, targets])
            failures = 0 if self.descend(eps, aims, again, steps) else failures + 1

    def refute(self, classes: int, eps: float, seed: int, steps: int = 40, restarts: int = 2) -> bool:
        """Descend within `eps` from the input and from random points; say whether a counterexample was found."""
        targets, start = self.others(classes)
        generator = torch.Generator().manual_seed(seed % 2**63)
        for _ in range(1 + restarts):
            self.descend(eps, targets, start, steps)
            if self.distance <= eps:
                return True
            start = self.corner(generator, start, eps)
        return False

    def others(self, classes: int) -> tuple[Int[Tensor, " m"], Float[Tensor, "m d"]]:
        """Return every other class, and a start at the input for each."""
        targets = torch.tensor([j for j in range(classes) if j != self.label], device=self.x.device)
        return targets, self.x.new_zeros(len(targets), self.x.shape[1])

    def corner(self, generator: torch.Generator, like: Float[Tensor, "m d"], eps: float) -> Float[Tensor, "m d"]:
        """Return the vertices of the ball that random slopes choose."""
        noise = torch.rand(like.shape, generator=generator, dtype=like.dtype).to(like.device) * 2 - 1
        return steepest_step(noise, like.new_full((len(like),), eps), self.threat, self.x)
