"""Steps from a counterexample back towards its input."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certbench.core.classifier import Classifier
from certbench.core.margins import clean_margin
from certbench.core.threat import ThreatModel

Bounds = tuple[Any, Any]
"""The lower and the upper end of a box: numbers, or tensors of the shape of an input."""


def clamped(points: Float[Tensor, "n ..."], bounds: Bounds) -> Float[Tensor, "n ..."]:
    """Move points into a box."""
    low, high = (end.to(points) if isinstance(end, Tensor) else end for end in bounds)
    return points.clamp(low, high)


def widest(bounds: Bounds) -> tuple[float, float]:
    """Return the smallest box with one range for all coordinates that holds this one."""
    low, high = bounds
    return float(low.min() if isinstance(low, Tensor) else low), float(high.max() if isinstance(high, Tensor) else high)


def differs(exact: Classifier, points: Float[Tensor, "n ..."], label: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Say whether another class is strictly larger, in float64; NaN is not."""
    return clean_margin(exact(points), label) < 0


def distance(threat: ThreatModel, x: Float[Tensor, "#n ..."], points: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    """Compute the distance of points from inputs, rounded up; infinite if a coordinate moved that must not.

    The relative error of a sum of d terms in float64 is below d 2^-53; a count is exact.
    """
    change = (points.double() - x).flatten(1)
    if threat.scale is not None:
        scale = change.new_tensor(threat.scale)
        forbidden = ((scale == 0) & (change != 0)).any(dim=1)
        inside = distance(ThreatModel(threat.p), torch.zeros_like(change), torch.where(scale > 0, change / scale, 0.0))
        return torch.where(forbidden, math.inf, inside if threat.p == 0 else inside * (1 + 2.0**-51))
    length: Tensor = torch.linalg.vector_norm(change, ord=threat.p, dim=1)
    return length if threat.p == 0 else length * (1 + change.shape[1] * 2.0**-52)


def walk_back(
    wrong: Callable[[Float[Tensor, "n ..."]], Bool[Tensor, " n"]],
    x: Float[Tensor, "#n ..."],
    points: Float[Tensor, "n ..."],
    *,
    rounds: int = 24,
    domain: Bounds | None = None,
) -> Float[Tensor, "n ..."]:
    """Bisect the segment from a counterexample to its input; other points stay unchanged.

    Args:
        wrong: function that says which points are counterexamples.
        x: the inputs, or the one input of all points.
        points: points at which the walks begin.
        rounds: number of rounds of the bisection.
        domain: the box that rounding must not leave.
    """
    view = shape(points)
    near, far = points.new_zeros(len(points)), points.new_ones(len(points))

    def at(share: Tensor) -> Tensor:
        moved = x + share.view(view) * (points - x)
        return moved if domain is None else clamped(moved, domain)

    for _ in range(rounds):
        middle = (near + far) / 2
        hit = wrong(at(middle))
        near, far = torch.where(hit, near, middle), torch.where(hit, middle, far)
    shorter = at(far)
    return torch.where(wrong(shorter).view(view), shorter, points)


def restore(
    exact: Classifier,
    x: Float[Tensor, "n ..."],
    label: Int[Tensor, " n"],
    points: Float[Tensor, "n ..."],
    *,
    singly: int = 64,
) -> Float[Tensor, "n ..."]:
    """Set back as many coordinates as possible while the class stays wrong: many at once, then one by one.

    The smallest changes are set back first.

    Args:
        exact: a base classifier in float64.
        x: inputs.
        label: their classes.
        points: counterexamples; other points stay unchanged.
        singly: number of coordinates that are tried one by one.
    """
    flat, origin = points.flatten(1).clone(), x.flatten(1)
    active = differs(exact, points, label)
    order = (flat - origin).abs().argsort(dim=1)
    rank = order.argsort(dim=1)  # 0: the smallest change
    low, high = torch.zeros_like(label), torch.full_like(label, flat.shape[1])  # numbers that can, cannot be set back
    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        tried = torch.where(rank < middle[:, None], origin, flat)
        fine = differs(exact, tried.view(x.shape), label)
        low, high = torch.where(fine, middle, low), torch.where(fine, high, middle)
    flat = torch.where(active[:, None] & (rank < low[:, None]), origin, flat)
    for _ in range(min(singly, int((flat != origin).sum(dim=1).max()) if len(x) else 0)):
        coordinate = order.gather(1, low.clamp(max=flat.shape[1] - 1)[:, None])
        tried = flat.scatter(1, coordinate, origin.gather(1, coordinate))
        fine = differs(exact, tried.view(x.shape), label) & active
        flat = torch.where(fine[:, None], tried, flat)
        low = low + 1
    return flat.view(x.shape)


def shape(x: Tensor) -> tuple[int, ...]:
    """Return the shape in which one number per input broadcasts over the inputs."""
    return (-1, *[1] * (x.dim() - 1))
