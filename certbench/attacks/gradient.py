"""Attacks that foolbox lacks, all in float64: L-BFGS, PGD inside balls of given radii, L0 greedily, and rectangles.

They return candidates; whether one is a counterexample is for the replay to say.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import Bounds, minimize
from torch import Tensor

from certbench.core.certifier import clean_margin
from certbench.core.classifier import Classifier
from certbench.core.threat import ThreatModel


def differs(exact: Classifier, points: Float[Tensor, "n ..."], label: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Whether another class wins outright, in float64; NaN does not."""
    return clean_margin(exact(points), label) < 0


def distance(threat: ThreatModel, x: Float[Tensor, "n ..."], points: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    """Rounded up: a sum of d terms in float64 is off by less than d 2^-53 of itself; a count is exact."""
    change = (points.double() - x).flatten(1)
    length: Tensor = torch.linalg.vector_norm(change, ord=threat.p, dim=1)
    return length if threat.p == 0 else length * (1 + change.shape[1] * 2.0**-52)


def walk_back(
    exact: Classifier, x: Float[Tensor, "n ..."], label: Int[Tensor, " n"], points: Float[Tensor, "n ..."]
) -> Float[Tensor, "n ..."]:
    """Bisect the segment from a counterexample towards its input; points that are none stay as they are."""
    view = shape(x)
    near, far = torch.zeros(len(x), dtype=x.dtype, device=x.device), torch.ones(len(x), dtype=x.dtype, device=x.device)
    for _ in range(24):
        middle = (near + far) / 2
        wrong = differs(exact, x + middle.view(view) * (points - x), label)
        near, far = torch.where(wrong, near, middle), torch.where(wrong, middle, far)
    shorter = x + far.view(view) * (points - x)
    return torch.where(differs(exact, shorter, label).view(view), shorter, points)


def restore(
    exact: Classifier,
    x: Float[Tensor, "n ..."],
    label: Int[Tensor, " n"],
    points: Float[Tensor, "n ..."],
    *,
    singly: int = 64,
) -> Float[Tensor, "n ..."]:
    """Set back as many coordinates as the class bears: many of the smallest changes at once, then one by one.

    Args:
        exact: a base classifier in float64.
        x: inputs.
        label: their classes.
        points: counterexamples; others stay as they are.
        singly: so many coordinates, those of the smallest changes that are left, are tried one by one.
    """
    flat, origin = points.flatten(1).clone(), x.flatten(1)
    active = differs(exact, points, label)
    order = (flat - origin).abs().argsort(dim=1)
    rank = order.argsort(dim=1)  # 0: the smallest change
    low, high = torch.zeros_like(label), torch.full_like(label, flat.shape[1])  # how many can be, cannot be set back
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


def pgd(
    exact: Classifier,
    x: Float[Tensor, "n ..."],
    label: Int[Tensor, " n"],
    threat: ThreatModel,
    eps: Float[Tensor, " n"],
    bounds: tuple[float, float],
    *,
    steps: int,
    generator: torch.Generator,
    rival: Int[Tensor, " n"] | None = None,
    start: Float[Tensor, "n ..."] | None = None,
) -> Float[Tensor, "n ..."]:
    """Projected gradient descent on a margin, every input within a radius of its own (Madry et al., 2018).

    Args:
        exact: a base classifier in float64.
        x: inputs.
        label: their classes.
        threat: L1, L2 or Linf.
        eps: radii.
        bounds: the box.
        steps: of falling length.
        generator: of directions where there is no gradient.
        rival: the class that shall win; None: whichever is first.
        start: where the descent begins; None: at the input.

    Returns:
        The closest counterexample that was passed, or where the descent ended.
    """
    view, change = shape(x), torch.zeros_like(x)
    if start is not None:
        change = project(start - x, threat, eps)
    best, least = x.clone(), torch.full_like(eps, math.inf)
    for step in range(steps + 1):
        change = ((x + change).clamp(*bounds) - x).requires_grad_(True)
        logits = exact.module(x + change)
        own = logits.gather(1, label[:, None]).squeeze(1)
        others = logits.scatter(1, label[:, None], -math.inf)
        ahead = others.amax(dim=1) if rival is None else others.gather(1, rival[:, None]).squeeze(1)
        (gradient,) = torch.autograd.grad((ahead - own).sum(), change)
        with torch.no_grad():
            gradient, change = gradient.nan_to_num(0.0, 0.0, 0.0), change.detach()
            length = torch.linalg.vector_norm(change.flatten(1), ord=threat.p, dim=1)
            closer = (clean_margin(logits, label) < 0) & (length < least)
            best = torch.where(closer.view(view), x + change, best)
            least = torch.where(closer, length, least)
            if step == steps:
                break
            dead = ~gradient.flatten(1).any(dim=1)
            if bool(dead.any()):
                gradient[dead] = torch.randn(gradient[dead].shape, generator=generator, dtype=x.dtype, device=x.device)
            pace = eps * (0.02 + 0.5 * (1 + math.cos(math.pi * step / steps)))
            change = project(change + pace.view(view) * _steepest(gradient, x + change, threat, bounds), threat, eps)
    ended = least.isinf().view(view)
    return torch.where(ended, (x + change).clamp(*bounds), best)


def _steepest(
    gradient: Float[Tensor, "n ..."], at: Float[Tensor, "n ..."], threat: ThreatModel, bounds: tuple[float, float]
) -> Float[Tensor, "n ..."]:
    """The direction of length 1 in the norm along which a linear function grows most, and which the box allows."""
    if threat.p == math.inf:
        return gradient.sign()
    flat = gradient.flatten(1)
    if threat.p == 2:
        unit: Tensor = flat / torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp(min=1e-300)
        return unit.view(gradient.shape)
    stuck = ((gradient > 0) & (at >= bounds[1])) | ((gradient < 0) & (at <= bounds[0]))
    steep = torch.where(stuck, 0.0, gradient).flatten(1)
    index = steep.abs().argmax(dim=1, keepdim=True)
    return torch.zeros_like(flat).scatter(1, index, steep.gather(1, index).sign()).view(gradient.shape)


def project(change: Float[Tensor, "n ..."], threat: ThreatModel, eps: Float[Tensor, " n"]) -> Float[Tensor, "n ..."]:
    """The nearest change of length at most eps, in L2; of L1, L2 or Linf length."""
    flat, reach = change.flatten(1), eps[:, None]
    if threat.p == math.inf:
        return torch.minimum(torch.maximum(flat, -reach), reach).view(change.shape)
    length = torch.linalg.vector_norm(flat, ord=threat.p, dim=1, keepdim=True)
    if threat.p == 2:
        shorter: Tensor = flat * (reach / length.clamp(min=1e-300)).clamp(max=1)
        return shorter.view(change.shape)
    ordered = flat.abs().sort(dim=1, descending=True).values
    count = torch.arange(1, flat.shape[1] + 1, device=flat.device)
    surplus = (ordered.cumsum(dim=1) - reach) / count  # what to take off, if that many entries remain
    remain = (ordered > surplus).sum(dim=1, keepdim=True).clamp(min=1)
    off = surplus.gather(1, remain - 1).clamp(min=0)
    return (flat.sign() * (flat.abs() - off).clamp(min=0)).view(change.shape)


def greedy(
    exact: Classifier,
    x: Float[Tensor, "n ..."],
    label: Int[Tensor, " n"],
    bounds: tuple[float, float],
    *,
    changes: int,
    rival: Int[Tensor, " n"],
) -> Float[Tensor, "n ..."]:
    """One coordinate after the other to an end of the box, where the gradient gains most (as Papernot et al., 2016)."""
    points, free = x.clone(), torch.ones_like(x, dtype=torch.bool).flatten(1)
    for _ in range(min(changes, free.shape[1])):
        going = ~differs(exact, points, label)
        if not bool(going.any()):
            break
        points.requires_grad_(True)
        logits = exact.module(points)
        ahead = (logits.gather(1, rival[:, None]) - logits.gather(1, label[:, None])).sum()
        (gradient,) = torch.autograd.grad(ahead, points)
        slope, flat = gradient.flatten(1), points.detach().flatten(1)
        end = torch.where(slope > 0, bounds[1], bounds[0]).to(flat)
        gain = torch.where(free, slope * (end - flat), -math.inf).nan_to_num(-math.inf)
        index = gain.argmax(dim=1, keepdim=True)
        free = free.scatter(1, index, False)
        moved = flat.scatter(1, index, end.gather(1, index))
        points = torch.where(going[:, None], moved, flat).view(x.shape)
    return points


def lbfgs(
    exact: Classifier,
    x: Float[Tensor, "n ..."],
    label: Int[Tensor, " n"],
    bounds: tuple[float, float],
    *,
    steps: int,
    searches: int = 8,
    rival: Int[Tensor, " n"],
) -> Float[Tensor, "n ..."]:
    """Minimise c |r|^2 + the rival's cross-entropy at x + r, in the box, and search for the largest c that fools.

    The first attack (Szegedy et al., 2014), by SciPy's L-BFGS-B, on the sum over all inputs, which have a c each.
    """
    found, view = x.clone(), shape(x)
    low, high = torch.full_like(x.flatten(1)[:, 0], -4.0), torch.full_like(x.flatten(1)[:, 0], 2.0)  # of log10 c
    for _ in range(searches):
        weight = 10.0 ** ((low + high) / 2)
        result = minimize(
            _penalised(exact, x, weight, rival), x.flatten().cpu().numpy(), jac=True, method="L-BFGS-B",
            bounds=Bounds(*bounds), options={"maxiter": steps},
        )  # fmt: skip
        points = torch.from_numpy(np.asarray(result.x)).to(x).view(x.shape)
        fooled = differs(exact, points, label)
        found = torch.where(fooled.view(view), points, found)
        low, high = torch.where(fooled, (low + high) / 2, low), torch.where(fooled, high, (low + high) / 2)
    return found


def _penalised(
    exact: Classifier, x: Float[Tensor, "n ..."], weight: Float[Tensor, " n"], rival: Int[Tensor, " n"]
) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        points = torch.from_numpy(flat.copy()).to(x).view(x.shape).requires_grad_(True)
        far = (points - x).flatten(1).square().sum(dim=1)
        own = exact.module(points).log_softmax(dim=1).gather(1, rival[:, None]).squeeze(1)
        loss = (weight * far - own).sum()
        (gradient,) = torch.autograd.grad(loss, points)
        return loss.item(), gradient.nan_to_num(0.0, 0.0, 0.0).flatten().cpu().numpy()

    return value


@dataclass(frozen=True, eq=False)
class Occlusions:
    """What rectangles of one size achieve at n images.

    Attributes:
        found: whether the answer differs from the label.
        point: the images with their rectangles, float64; the image itself where none was found.
        place: row and column of the rectangle's first pixel.
    """

    found: Bool[Tensor, " n"]
    point: Float[Tensor, "n channels height width"]
    place: Int[Tensor, "n 2"]


Judge = Callable[[Tensor], Tensor]
"""From points to classes."""


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
    """Rectangular occlusion attack (Wu, Tong and Vorobeychik, 2020), which audits certificates against patches.

    Every place is tried with a grey rectangle; at those where the label's margin is least, PGD fills the rectangle. Of
    a base classifier, what is found is also a counterexample in L0, at channels * height * width at most. Certificates
    of `verifiers.patches` are about votes: give a differentiable stand-in as `classifier`, and the smoothed classifier
    as `judge`.

    Args:
        classifier: whose gradient is followed.
        x: images.
        height: of the rectangle.
        width: of the rectangle.
        bounds: the box of pixel values.
        label: the classes to be left; None: the classifier's own.
        judge: what answers; None: the classifier, in float64.
        places: so many rectangles per image are filled by PGD.
        steps: of PGD.
        seed: of its starts.
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
    """PGD on the margin with sign steps inside the rectangles; the iterate of the least margin."""
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


def shape(x: Tensor) -> tuple[int, ...]:
    """How a number per input is viewed, to be multiplied with the inputs."""
    return (-1, *[1] * (x.dim() - 1))
