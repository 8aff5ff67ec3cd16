"""Attacks where threats have scales: they run on the reduced problems, and each point is replayed at the input itself.

See `certbench.core.reduction`. A point that counts lies in the domain, changes no fixed coordinate, and its distance is
measured in units of the scale from the input, not from its rounded image.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.attacks.counterexamples import Counterexamples, Hunt, PerThreat
from certbench.attacks.walk import Bounds
from certbench.core.classifier import Classifier
from certbench.core.reduction import Piece, pieces
from certbench.core.threat import ThreatModel

PUSH = 1e-9
"""Share by which a point is also moved on, away from its input: at the boundary, rounding may have brought it back."""

Attack = Callable[[Piece, tuple[ThreatModel, ...], Bounds, PerThreat], PerThreat]
"""An attack on a reduced problem: gets the problem, the threats without scales, the box, and known points."""


def scaled(threats: tuple[ThreatModel, ...]) -> bool:
    """Say whether a threat has scales."""
    return any(threat.scale is not None for threat in threats)


def attack_reduced(
    classifier: Classifier,
    x: Float[Tensor, "n ..."],
    threats: tuple[ThreatModel, ...],
    bounds: Bounds,
    attack: Attack,
    known: Mapping[ThreatModel, Counterexamples] | None = None,
) -> PerThreat:
    """Run an attack on each reduced problem; return what it found at the inputs themselves.

    Args:
        classifier: a base classifier.
        x: inputs, within `bounds`.
        threats: the threats, some of them with scales.
        bounds: the box in which counterexamples may lie.
        attack: the attack.
        known: points to begin with.
    """
    hunt = Hunt.of(classifier, x, threats, bounds)
    x, known = hunt.x, known or {}
    groups: dict[ThreatModel, list[ThreatModel]] = {}
    for threat in threats:
        groups.setdefault(replace(threat, p=1.0), []).append(threat)
    for group in groups.values():
        points = {threat: x.clone() for threat in group}
        names = {threat: [""] * len(x) for threat in group}
        for piece in pieces(classifier, x, group[0]):
            plain = {replace(piece.threat, p=threat.p): threat for threat in group}
            before = {
                short: _reduced(known[threat].at(piece.rows), piece)
                for short, threat in plain.items()
                if threat in known
            }
            found = attack(piece, tuple(plain), _box(bounds, piece, x), before)
            for short, threat in plain.items():
                points[threat][piece.rows] = piece.restore(found[short].point.to(x), x[piece.rows])
                for i, name in zip(piece.rows, found[short].attack, strict=True):
                    names[threat][i] = name
        for threat in group:
            hunt.offer(tuple(names[threat]), points[threat], walk=False)
            hunt.offer(tuple(names[threat]), x + (1 + PUSH) * (points[threat] - x), walk=False)
    return hunt.found


def _reduced(known: Counterexamples, piece: Piece) -> Counterexamples:
    return replace(known, point=piece.reduce(known.point.to(piece.z)).cpu())


def _box(bounds: Bounds, piece: Piece, x: Tensor) -> Bounds:
    """Return the box of the reduced problem."""
    if piece.scale is None:
        return bounds
    low, high = (piece.reduce(torch.zeros_like(x[:1]) + end)[0] for end in bounds)
    return low, high
