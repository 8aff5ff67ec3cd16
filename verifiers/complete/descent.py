"""Counterexamples for a complete verifier: Frank-Wolfe descent (Jaggi, 2013) of each margin, then a walk back.

Every point is replayed in float64 before it counts. One input at a time, so nothing depends on neighbours.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.core.ball import steepest
from certbench.core.classifier import Classifier
from certbench.core.margins import clean_margin
from certbench.core.threat import ThreatModel


@dataclass(eq=False)
class Counterexample:
    """The closest counterexample of one input so far.

    Attributes:
        classifier: in float64.
        threat: the norm and the domain.
        x: the input, flat.
        label: its class.
        distance: of the closest one, rounded up; inf while none is known.
        point: where it is.
    """

    classifier: Classifier
    threat: ThreatModel
    x: Float[Tensor, "1 d"]
    label: int
    distance: float = math.inf
    point: Float[Tensor, " d"] | None = field(default=None)

    def wrong(self, points: Float[Tensor, "m d"]) -> Tensor:
        """Which points another class wins outright."""
        logits = self.classifier(points.view(-1, *self.classifier.input_shape))
        margin = clean_margin(logits, torch.full((len(points),), self.label, device=points.device))
        return (margin < 0) & logits.isfinite().all(dim=1)

    def length(self, points: Float[Tensor, "m d"]) -> Float[Tensor, " m"]:
        """Distances from the input, rounded up."""
        length: Tensor = torch.linalg.vector_norm(points - self.x, ord=self.threat.p, dim=1)
        return length * (1 + self.x.shape[1] * 2.0**-52)

    def offer(self, points: Float[Tensor, "m d"], rounds: int = 30) -> bool:
        """Look for a closer one on the segments from the input to the points that are counterexamples."""
        if self.threat.domain is not None:
            points = points.clamp(*self.threat.domain)
        points = points[points.isfinite().all(dim=1)]
        points = points[self.wrong(points)] if len(points) else points
        if len(points) == 0:
            return False
        near, far = points.new_zeros(len(points), 1), points.new_ones(len(points), 1)
        for _ in range(rounds):
            middle = (near + far) / 2
            wrong = self.wrong(self.x + middle * (points - self.x))[:, None]
            near, far = torch.where(wrong, near, middle), torch.where(wrong, middle, far)
        shorter = self.x + far * (points - self.x)
        shorter = shorter if self.threat.domain is None else shorter.clamp(*self.threat.domain)
        points = torch.where(self.wrong(shorter)[:, None], shorter, points)
        length = self.length(points)
        best = int(length.argmin())
        if not float(length[best]) < self.distance:
            return False
        self.distance, self.point = float(length[best]), points[best]
        return True


def descend(
    found: Counterexample,
    eps: float,
    targets: Int[Tensor, " m"],
    start: Float[Tensor, "m d"],
    steps: int = 30,
    rounds: int = 30,
) -> bool:
    """Lower f_label - f_target over the ball from each start; what crosses is offered.

    The step goes from the point towards the ball's vertex that the gradient chooses, by a share that falls to zero.

    Returns:
        Whether a closer counterexample was found.
    """
    module, shape = found.classifier.module, found.classifier.input_shape
    x, delta = found.x.expand(len(start), -1), start
    radius = x.new_full((len(start),), eps)
    best, lowest = delta.clone(), x.new_full((len(start),), math.inf)
    for step in range(steps + 1):
        with torch.enable_grad():
            points = (x + delta).detach().requires_grad_()
            logits = module(points.view(-1, *shape))
            loss = logits[:, found.label] - logits.gather(1, targets[:, None]).squeeze(1)
            if not loss.requires_grad:
                break
            (gradient,) = torch.autograd.grad(loss.sum(), points)
        lower = loss.detach() < lowest
        lowest = torch.where(lower, loss.detach(), lowest)
        best = torch.where(lower[:, None], delta, best)
        share = 0.5 * (1 - step / (steps + 1)) if step else 1.0
        goal = steepest(gradient[:, None], found.threat, x, radius).squeeze(1)
        delta = delta + share * (goal - delta)
    return found.offer(x + best, rounds)


def attack(found: Counterexample, classes: int, guess: float, limit: float, seed: int, steps: int = 30) -> None:
    """The closest counterexample that a growing and then shrinking ball shows, every other class being a target."""
    targets = torch.tensor([j for j in range(classes) if j != found.label], device=found.x.device)
    eps = min(guess, limit) if 0 < guess < math.inf else limit / 64
    start = found.x.new_zeros(len(targets), found.x.shape[1])
    for _ in range(40):
        if descend(found, eps, targets, start, steps) or eps >= limit:
            break
        eps = min(eps * 1.5, limit)
    generator = torch.Generator().manual_seed(seed % 2**63)
    failures = 0
    while found.distance < math.inf and failures < 3:
        eps = 0.98 * found.distance
        noise = torch.rand(start.shape, generator=generator, dtype=start.dtype).to(start.device) * 2 - 1
        vertex = steepest(noise[:, None], found.threat, found.x.expand_as(start), start.new_full((len(start),), eps))
        assert found.point is not None
        near = (found.point - found.x) * 0.98
        again = torch.cat([near.expand(2, -1), start, 0.5 * (near + vertex.squeeze(1))])
        guilty = int(found.classifier(found.point.view(1, *found.classifier.input_shape)).argmax())
        aims = torch.cat([targets.new_full((2,), guilty), targets, targets])
        failures = 0 if descend(found, eps, aims, again, steps) else failures + 1


def refute(found: Counterexample, classes: int, eps: float, seed: int, steps: int = 40, restarts: int = 2) -> bool:
    """Whether a counterexample within `eps` was found, from the input itself and from random points."""
    targets = torch.tensor([j for j in range(classes) if j != found.label], device=found.x.device)
    generator = torch.Generator().manual_seed(seed % 2**63)
    start = found.x.new_zeros(len(targets), found.x.shape[1])
    for _ in range(1 + restarts):
        descend(found, eps, targets, start, steps)
        if found.distance <= eps:
            return True
        noise = torch.rand(start.shape, generator=generator, dtype=start.dtype).to(start.device) * 2 - 1
        start = steepest(noise[:, None], found.threat, found.x.expand_as(start), start.new_full((len(start),), eps))[
            :, 0
        ]
    return False
