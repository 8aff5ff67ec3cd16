"""Attacks that cover a rectangle of an image."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certbench.attacks.walk import differs, shape
from certbench.core.classifier import Classifier
from certbench.core.margins import clean_margin


@dataclass(frozen=True, eq=False)
class Occlusions:
    """Results of an attack with rectangles of one size on n images.

    Attributes:
        found: whether the answer differs from the label.
        point: the images with their rectangles, float64; the image itself if the attack failed.
        place: row and column of the rectangle's first pixel.
    """

    found: Bool[Tensor, " n"]
    point: Float[Tensor, "n channels height width"]
    place: Int[Tensor, "n 2"]


Judge = Callable[[Tensor], Tensor]
"""Function from points to classes."""


def occlude(
    classifier: Classifier,
    x: Float[Tensor, "n channels rows columns"],
    height: int,
    width: int,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    label: Int[Tensor, " n"] | None = None,
    judge: Judge | None = None,
    places: int = 5,
    steps: int = 40,
    seed: int = 0,
) -> Occlusions:
    """Attack images with rectangles (Wu, Tong and Vorobeychik, 2020), to audit certificates against patches.

    Every place is tried with a grey rectangle. At the places with the least margin of the label, PGD fills the
    rectangle. For a base classifier, a result is also a counterexample in L0, at channels * height * width at most.
    Certificates of `verifiers.patches` are about votes: give a differentiable stand-in as `classifier`, and the
    smoothed classifier as `judge`.

    Args:
        classifier: the classifier whose gradient is followed.
        x: images.
        height: height of the rectangle.
        width: width of the rectangle.
        bounds: the box of pixel values.
        label: the classes that the attack should change; None: the classifier's own.
        judge: the function that gives the classes; None: the classifier, in float64.
        places: number of places per image at which PGD fills the rectangle.
        steps: number of steps of PGD.
        seed: seed of PGD's starts.
    """
    exact = classifier.double()
    x = x.to(classifier.device, torch.float64)
    label = exact(x).argmax(dim=1) if label is None else label.to(x.device)

    def changed(points: Tensor) -> Tensor:
        return differs(exact, points, label) if judge is None else judge(points).to(x.device) != label

    corners = [(r, c) for r in range(x.shape[2] - height + 1) for c in range(x.shape[3] - width + 1)]
    found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    point, place = x.clone(), torch.zeros(len(x), 2, dtype=torch.int64, device=x.device)
    if not corners or len(x) == 0:
        return Occlusions(found.cpu(), point.cpu(), place.cpu())
    generator = torch.Generator(x.device).manual_seed(seed)
    grey = [torch.where(_inside(x, torch.tensor([at] * len(x)), height, width), sum(bounds) / 2, x) for at in corners]
    margins = torch.stack([clean_margin(exact(points), label) for points in grey], dim=1)
    for rank in margins.argsort(dim=1)[:, :places].T:
        at = torch.tensor(corners, device=x.device)[rank]
        inside = _inside(x, at, height, width)
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        filled = torch.where(inside, bounds[0] + (bounds[1] - bounds[0]) * noise, x)
        gray = torch.where(inside, sum(bounds) / 2, x)
        for points in (gray, _fill(exact, filled, label, inside, bounds, steps)):
            new = changed(points) & ~found
            found, point = found | new, torch.where(new.view(shape(x)), points, point)
            place = torch.where(new[:, None], at, place)
    return Occlusions(found.cpu(), point.cpu(), place.cpu())


def _inside(
    x: Float[Tensor, "n channels rows columns"], place: Int[Tensor, "n 2"], height: int, width: int
) -> Bool[Tensor, "n channels rows columns"]:
    row, column = torch.arange(x.shape[2], device=x.device), torch.arange(x.shape[3], device=x.device)
    first = place.to(x.device)
    down = (row >= first[:, :1]) & (row < first[:, :1] + height)
    across = (column >= first[:, 1:]) & (column < first[:, 1:] + width)
    return (down[:, None, :, None] & across[:, None, None, :]).expand(x.shape)


def _fill(
    exact: Classifier,
    points: Float[Tensor, "n ..."],
    label: Int[Tensor, " n"],
    inside: Bool[Tensor, "n ..."],
    bounds: tuple[float, float],
    steps: int,
) -> Float[Tensor, "n ..."]:
    """Run PGD on the margin with sign steps inside the rectangles; return the iterate of the least margin."""
    best, least = points, torch.full((len(points),), math.inf, dtype=points.dtype, device=points.device)
    span = bounds[1] - bounds[0]
    for step in range(steps + 1):
        points = points.detach().requires_grad_(True)
        margin = clean_margin(exact.module(points), label)
        (gradient,) = torch.autograd.grad(margin.sum(), points)
        lower = margin.detach() < least
        best = torch.where(lower.view(shape(points)), points.detach(), best)
        least = torch.where(lower, margin.detach(), least)
        pace = span * (0.01 + 0.15 * (1 - step / max(1, steps)))
        points = torch.where(inside, (points.detach() - pace * gradient.sign()).clamp(*bounds), points.detach())
    return best
