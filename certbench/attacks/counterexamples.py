"""Counterexamples: points of another class, the closest known for each input."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certbench.attacks.walk import Bounds, clamped, differs, distance, restore, shape, walk_back
from certbench.core.classifier import Classifier
from certbench.core.threat import ThreatModel


@dataclass(frozen=True, eq=False)
class Counterexamples:
    """The closest known counterexamples of n inputs in one norm.

    Attributes:
        distance: distances from the inputs, float64, rounded up; inf if none was found.
        point: the counterexamples, float64; the input itself if none was found.
        attack: name of the attack that found each one; empty if none was found.
    """

    distance: Float[Tensor, " n"]
    point: Float[Tensor, "n ..."]
    attack: tuple[str, ...]

    @staticmethod
    def none(x: Float[Tensor, "n ..."]) -> "Counterexamples":
        """Begin without a counterexample for these inputs."""
        unknown = torch.full((len(x),), math.inf, dtype=torch.float64)
        return Counterexamples(unknown, x.to("cpu", torch.float64).clone(), ("",) * len(x))

    def at(self, rows: list[int]) -> "Counterexamples":
        """Select the counterexamples of some inputs."""
        return Counterexamples(self.distance[rows], self.point[rows], tuple(self.attack[i] for i in rows))

    def closer(
        self, names: tuple[str, ...], distance: Tensor, points: Float[Tensor, "n ..."], wrong: Bool[Tensor, " n"]
    ) -> "Counterexamples":
        """Replace counterexamples by those of these points that are wrong and closer."""
        distance, points, wrong = distance.cpu(), points.cpu(), wrong.cpu()
        better = wrong & (distance < self.distance)
        return Counterexamples(
            distance=torch.where(better, distance, self.distance),
            point=torch.where(better.view(shape(points)), points, self.point),
            attack=tuple(n if b else old for n, b, old in zip(names, better.tolist(), self.attack, strict=True)),
        )


PerThreat = dict[ThreatModel, Counterexamples]
"""The closest counterexamples of some inputs, for each threat model."""


def replay(classifier: Classifier, x: Float[Tensor, "n ..."], threat: ThreatModel, found: Counterexamples) -> PerThreat:
    """Return the claimed counterexamples that hold up: inside the domain, and of another class in float64."""
    hunt = Hunt.of(classifier, x, (threat,), threat.ends(x))
    if len(x):
        hunt.offer(found.attack, found.point.to(hunt.x), walk=False)
    return hunt.found


@dataclass(eq=False)
class Hunt:
    """A search in progress: a point is offered, walks back to its input, is replayed, and is kept if it is closer."""

    exact: Classifier
    x: Float[Tensor, "n ..."]
    label: Int[Tensor, " n"]
    answered: Bool[Tensor, " n"]
    bounds: Bounds
    found: PerThreat = field(default_factory=dict)

    @staticmethod
    def of(
        classifier: Classifier,
        x: Float[Tensor, "n ..."],
        threats: tuple[ThreatModel, ...],
        bounds: Bounds,
    ) -> "Hunt":
        """Begin with nothing found."""
        exact = classifier.double()
        x = x.to(classifier.device, torch.float64)
        logits = exact(x)
        found = {threat: Counterexamples.none(x) for threat in threats}
        return Hunt(exact, x, logits.argmax(dim=1), logits.isfinite().all(dim=1), bounds, found)

    def offer(self, name: str | tuple[str, ...], points: Float[Tensor, "n ..."], walk: bool = True) -> None:
        """Keep points of another class that are closer than the known ones; with `walk`, each walks back first."""
        names = (name,) * len(self.x) if isinstance(name, str) else name
        points = clamped(points.to(torch.float64), self.bounds)
        if walk:
            points = walk_back(lambda moved: differs(self.exact, moved, self.label), self.x, points)
        wrong = differs(self.exact, points, self.label) & self.answered
        for threat, before in self.found.items():
            self.found[threat] = before.closer(names, distance(threat, self.x, points), points, wrong)

    def best(self, p: float) -> Float[Tensor, "n ..."]:
        """Return the known counterexample that is closest in a norm, for each input; the input if none is known."""
        closest, length = self.x, torch.full((len(self.x),), math.inf, dtype=torch.float64, device=self.x.device)
        for found in self.found.values():
            points, hit = found.point.to(self.x), found.distance.isfinite().to(self.x.device)
            far = torch.linalg.vector_norm((points - self.x).flatten(1), ord=p, dim=1)
            better = hit & (far < length)
            closest = torch.where(better.view(shape(self.x)), points, closest)
            length = torch.where(better, far, length)
        return closest

    def set_back(self) -> None:
        """Set back coordinates that need not change, in L0 and L1."""
        for threat, found in list(self.found.items()):
            if threat.p < 2:
                points = restore(self.exact, self.x, self.label, found.point.to(self.x))
                names = tuple(f"{name}, set back" if name else "" for name in found.attack)
                self.offer(names, points, walk=threat.p == 1)
