"""The check whether a certifier proves the radius of a row again, by bounding margins once more.

A radius is proved if the bounds over its ball are positive, or if a linear function or cone below the margins on
another ball is positive up to it (`Bounds.crossing`). A search may have looked at either, and bounds are not monotone
in the ball. So a claim is tried on its own ball, on some near it, and on the one at which the search gave up. If none
of them proves it, the input is certified again from the start, by the certifier's own search.
"""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.core.certifier import Certifier, MarginCertifier
from certbench.core.classifier import Classifier
from certbench.core.inputs import input_seed
from certbench.core.margins import FLOOR, SLACK
from certbench.core.reduction import pieces
from certbench.core.threat import ThreatModel
from certbench.errors import CertificationError, UnsupportedError

BALLS = (1.0, 0.999, 1.001, 1.01, 1.05)
"""Radii of the balls that are tried, in units of the claimed radius."""

ENOUGH = 0.999
"""Share of a radius that has to be proved; the rest allows for the last bits, which decide where a search ends."""

BATCH = 16


@dataclass
class Rebound:
    """The result of bounding the claims of one certifier again.

    Attributes:
        proved: number of radii that were proved again.
        unproved: positions of radii that were not.
        unreached: positions of radii for which there was no time.
        repeatable: whether bounds are the same each time, so that a radius that is unproved now never was proved.
    """

    proved: int = 0
    unproved: list[int] = field(default_factory=list)
    unreached: list[int] = field(default_factory=list)
    repeatable: bool = True


@torch.no_grad()
def rebound(
    certifier: Certifier[Any],
    classifier: Classifier,
    x: Float[Tensor, "n ..."],
    threat: ThreatModel,
    radius: Float[Tensor, " n"],
    *,
    seed: int = 0,
    beside: Float[Tensor, " n"] | None = None,
    deadline: float = math.inf,
) -> Rebound:
    """Bound the margins of claimed radii again.

    Args:
        certifier: a certifier that bounds margins, or with members that do.
        classifier: the certified classifier; the class is its own prediction.
        x: inputs.
        threat: norm and domain.
        radius: claimed radii, positive.
        seed: seed of the run.
        beside: for each input, another radius to try, for example the one at which the search gave up.
        deadline: value of `time.monotonic` after which no batch begins.

    Raises:
        UnsupportedError: the certifier bounds no margins.
    """
    if threat.scale is not None:
        joined = Rebound(repeatable=certifier.repeatable)
        beside = radius if beside is None else beside
        for piece in pieces(classifier, x.to(classifier.device, torch.float64), threat):
            rows = piece.rows
            if time.monotonic() > deadline:
                joined.unreached += rows
                continue
            found = rebound(
                certifier, piece.classifier, piece.z, piece.threat, radius[rows],
                seed=seed, beside=beside[rows], deadline=deadline,
            )  # fmt: skip
            joined.proved += found.proved
            joined.unproved += [rows[i] for i in found.unproved]
            joined.unreached += [rows[i] for i in found.unreached]
        return joined
    members = certifier.members or (certifier,)
    bounding = [member for member in members if isinstance(member, MarginCertifier)]
    if len(bounding) < len(members):
        raise UnsupportedError("it bounds no margins that could be computed again")
    x, radius = x.to(classifier.device, torch.float64), radius.to(classifier.device, torch.float64)
    beside = radius if beside is None else beside.to(radius)
    states: list[tuple[MarginCertifier[Any], Any]] = []
    reason = ""
    for member in bounding:
        try:
            reason = member.unsupported(classifier, threat) or ""
            states += [] if reason else [(member, member.prepare(classifier, threat))]
        except (UnsupportedError, CertificationError) as error:
            reason = str(error)
    if not states:
        raise UnsupportedError(reason)
    result = Rebound(repeatable=certifier.repeatable)
    for start in range(0, len(x), BATCH):
        if time.monotonic() > deadline:
            result.unreached += range(start, len(x))
            break
        part = slice(start, start + BATCH)
        proved = torch.zeros_like(radius[part])
        for member, state in states:
            _bound(member, state, x[part], radius[part], beside[part], proved)
        if left := _left(proved, radius[part]):
            whole = certifier.prepare(classifier, threat) if certifier.members else states[0][1]
            points = x[part][left]
            again = certifier.certify(whole, points, [input_seed(seed, point) for point in points])
            proved[left] = torch.maximum(proved[left], again.radius.to(proved))
        left = _left(proved, radius[part])
        result.unproved += [start + i for i in left]
        result.proved += len(proved) - len(left)
    return result


def _left(proved: Float[Tensor, " n"], radius: Float[Tensor, " n"]) -> list[int]:
    indices: list[int] = (~(proved >= ENOUGH * radius)).nonzero().squeeze(1).tolist()
    return indices


def _bound(
    certifier: MarginCertifier[Any],
    state: Any,
    x: Float[Tensor, "n ..."],
    radius: Float[Tensor, " n"],
    beside: Float[Tensor, " n"],
    proved: Float[Tensor, " n"],
) -> None:
    """Raise `proved` to the radii that the balls prove."""
    logits, scale = state.classifier.logits_and_scale(x)
    label: Int[Tensor, " n"] = logits.argmax(dim=1)
    for ball in (*(share * radius for share in BALLS), beside):
        index = [i for i in _left(proved, radius) if 0 < ball[i] < math.inf]
        if not index:
            continue
        eps = ball[index]
        bounds = certifier.margins(state, x[index], label[index], eps)
        floor = (SLACK * scale[index]).clamp(min=FLOOR)[:, None].expand_as(bounds.lower)
        holds = (bounds.lower > floor).all(dim=1)  # NaN never certifies
        crossing = bounds.crossing(state.threat, x[index].flatten(1), floor).nan_to_num(nan=0.0).clamp(min=0.0)
        crossing = torch.where(bounds.lower.isfinite().all(dim=1), crossing, 0.0)
        there = torch.where(holds, eps, torch.minimum(crossing, eps))
        proved[index] = torch.maximum(proved[index], there)
