"""The audit: attacks give every correctly classified input of a base classifier a counterexample, an upper bound.

foolbox (Rauber et al., 2020) finds the points; none is believed before it has been replayed in float64. Every point
counts in every norm, so an L2 attack may tighten the Linf bound.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import foolbox
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certbench.certifier import clean_margin
from certbench.classifier import Classifier
from certbench.threat import ThreatModel

VERSION = 1
"""Raised when the battery changes, so that its counterexamples are looked for again."""


@dataclass(frozen=True, eq=False)
class Counterexamples:
    """The closest counterexamples that were found, for n inputs and one norm.

    Attributes:
        distance: float64, rounded up; inf where none was found.
        point: the counterexamples, float64; the input itself where none was found.
        attack: which attack found it.
    """

    distance: Float[Tensor, " n"]
    point: Float[Tensor, "n ..."]
    attack: tuple[str, ...]


def attack(
    classifier: Classifier,
    x: Float[Tensor, "n ..."],
    threats: tuple[ThreatModel, ...],
    bounds: tuple[float, float],
    *,
    steps: int = 100,
    seed: int = 0,
) -> dict[ThreatModel, Counterexamples]:
    """Attack the classifier's own prediction at each input: FMN, DDN, C&W and PGD, then a walk back to the input.

    Args:
        classifier: a base classifier.
        x: inputs, within `bounds`.
        threats: the norms in which distances are wanted.
        bounds: the box in which counterexamples may lie; the threat model's domain, or the range of the data.
        steps: of each attack.
        seed: of the attacks' random starts; torch's global generator is left as it was.
    """
    exact = classifier.double()
    x = x.to(classifier.device, torch.float64)
    logits = exact(x)
    label, answered = logits.argmax(dim=1), logits.isfinite().all(dim=1)
    found = {
        threat: Counterexamples(torch.full((len(x),), math.inf, dtype=torch.float64), x.cpu().clone(), ("",) * len(x))
        for threat in threats
    }
    if len(x) == 0:
        return found
    devices = [classifier.device] if classifier.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for name, points in _battery(classifier, x, label, threats, bounds, steps):
            points = _walk_back(exact, x, label, points.to(torch.float64).clamp(*bounds))
            wrong = _differs(exact, points, label) & answered
            for threat in threats:
                found[threat] = _closer(found[threat], name, _distance(threat, x, points), points, wrong)
    return found


def _battery(
    classifier: Classifier,
    x: Float[Tensor, "n ..."],
    label: Int[Tensor, " n"],
    threats: tuple[ThreatModel, ...],
    bounds: tuple[float, float],
    steps: int,
) -> Iterator[tuple[str, Float[Tensor, "n ..."]]]:
    """Candidate points of each attack; those that failed are weeded out by the replay."""
    attacks = foolbox.attacks
    model = foolbox.PyTorchModel(classifier.module, bounds=bounds, device=classifier.device)
    images = x.to(classifier.dtype).clamp(*bounds)
    criterion = foolbox.criteria.Misclassification(label)
    # The nearest of the other inputs that is classified differently: found without a gradient.
    start = _other_class(images, label)
    if start is not None:
        yield "nearest input", start
    norms = {threat.p for threat in threats}
    minimal: dict[str, Any] = {}
    if 1.0 in norms:
        minimal["L1 FMN"] = attacks.L1FMNAttack(steps=steps)
    if 2.0 in norms or 1.0 in norms:
        minimal["L2 FMN"] = attacks.L2FMNAttack(steps=steps)
        minimal["DDN"] = attacks.DDNAttack(steps=steps)
        minimal["C&W"] = attacks.L2CarliniWagnerAttack(binary_search_steps=4, steps=steps, stepsize=0.05)
    if math.inf in norms:
        minimal["Linf FMN"] = attacks.LInfFMNAttack(steps=steps)
    for name, method in minimal.items():
        yield name, method.run(model, images, criterion)
    fixed = {
        1.0: ("L1 PGD", attacks.SparseL1DescentAttack(steps=steps)),
        2.0: ("L2 PGD", attacks.L2PGD(steps=steps)),
        math.inf: ("Linf PGD", attacks.LinfPGD(steps=steps)),
    }
    for threat in threats:
        if threat.p not in fixed:  # L0 has no attack of its own; what the others find counts
            continue
        name, method = fixed[threat.p]
        for fraction in (0.5, 0.25):
            # PGD wants a radius: a share of the way to the nearest other class, shortened by the walk back; where
            # all inputs are of one class, of the way to the middle of the box.
            goal = torch.full_like(x, sum(bounds) / 2) if start is None else start
            eps = fraction * _distance(threat, x, goal).median().item()
            if eps > 0:
                yield name, method.run(model, images, criterion, epsilon=eps)


def _other_class(x: Float[Tensor, "n ..."], label: Int[Tensor, " n"]) -> Float[Tensor, "n ..."] | None:
    if bool((label == label[0]).all()):
        return None
    distance = torch.cdist(x.flatten(1).double(), x.flatten(1).double())
    distance[label[:, None] == label[None]] = math.inf
    return x[distance.argmin(dim=1)]


def _walk_back(
    exact: Classifier, x: Float[Tensor, "n ..."], label: Int[Tensor, " n"], points: Float[Tensor, "n ..."]
) -> Float[Tensor, "n ..."]:
    """Bisect the segment from a counterexample towards its input; points that are none stay as they are."""
    shape = (-1, *[1] * (x.dim() - 1))
    near, far = torch.zeros(len(x), dtype=x.dtype, device=x.device), torch.ones(len(x), dtype=x.dtype, device=x.device)
    for _ in range(24):
        middle = (near + far) / 2
        wrong = _differs(exact, x + middle.view(shape) * (points - x), label)
        near, far = torch.where(wrong, near, middle), torch.where(wrong, middle, far)
    shorter = x + far.view(shape) * (points - x)
    return torch.where(_differs(exact, shorter, label).view(shape), shorter, points)


def _differs(exact: Classifier, points: Float[Tensor, "n ..."], label: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Whether another class wins outright, in float64; NaN does not."""
    return clean_margin(exact(points), label) < 0


def _distance(threat: ThreatModel, x: Float[Tensor, "n ..."], points: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    """Rounded up: a sum of d terms in float64 is off by less than d 2^-53 of itself."""
    change = (points.double() - x).flatten(1)
    length: Tensor = torch.linalg.vector_norm(change, ord=threat.p, dim=1)
    return length * (1 + change.shape[1] * 2.0**-52)


def _closer(
    old: Counterexamples, name: str, distance: Tensor, points: Float[Tensor, "n ..."], wrong: Bool[Tensor, " n"]
) -> Counterexamples:
    distance, points, wrong = distance.cpu(), points.cpu(), wrong.cpu()
    better = wrong & (distance < old.distance)
    shape = (-1, *[1] * (points.dim() - 1))
    return Counterexamples(
        distance=torch.where(better, distance, old.distance),
        point=torch.where(better.view(shape), points, old.point),
        attack=tuple(name if b else before for b, before in zip(better.tolist(), old.attack, strict=True)),
    )
