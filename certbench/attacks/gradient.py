"""Attacks that foolbox lacks, all in float64: L-BFGS, PGD in balls of given radii, and greedy L0 search.

They return candidates; the replay decides which of them are counterexamples.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import optimize
from torch import Tensor

from certbench.attacks.walk import Bounds, clamped, differs, shape
from certbench.core.ball import steepest
from certbench.core.classifier import Classifier
from certbench.core.margins import clean_margin
from certbench.core.threat import ThreatModel


def pgd(
    exact: Classifier,
    x: Float[Tensor, "n ..."],
    label: Int[Tensor, " n"],
    threat: ThreatModel,
    eps: Float[Tensor, " n"],
    bounds: Bounds,
    *,
    steps: int,
    generator: torch.Generator,
    rival: Int[Tensor, " n"] | None = None,
    start: Float[Tensor, "n ..."] | None = None,
) -> Float[Tensor, "n ..."]:
    """Run projected gradient descent on a margin, each input within its own radius (Madry et al., 2018).

    Args:
        exact: a base classifier in float64.
        x: inputs.
        label: their classes.
        threat: L1, L2 or Linf.
        eps: radii.
        bounds: the box.
        steps: number of steps; their length falls.
        generator: source of random directions where the gradient is zero.
        rival: the class that should win; None: the best other class.
        start: starting points of the descent; None: the inputs.

    Returns:
        The closest counterexample on the way, or the point where the descent ended.
    """
    view, change = shape(x), torch.zeros_like(x)
    if start is not None:
        change = project(start - x, threat, eps)
    best, least = x.clone(), torch.full_like(eps, math.inf)
    for step in range(steps + 1):
        change = (clamped(x + change, bounds) - x).requires_grad_(True)
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
            change = project(change + pace.view(view) * _direction(gradient, x + change, threat, bounds), threat, eps)
    ended = least.isinf().view(view)
    return torch.where(ended, clamped(x + change, bounds), best)


def _direction(
    gradient: Float[Tensor, "n ..."], at: Float[Tensor, "n ..."], threat: ThreatModel, bounds: Bounds
) -> Float[Tensor, "n ..."]:
    """Return the step of length 1 on which a linear function grows most; in L1 on a coordinate that the box leaves."""
    if threat.p == 1:
        stuck = ((gradient > 0) & (at >= bounds[1])) | ((gradient < 0) & (at <= bounds[0]))
        gradient = torch.where(stuck, 0.0, gradient)
    flat = gradient.flatten(1)
    falling = -flat / flat.abs().amax(dim=1, keepdim=True).clamp(min=1e-300)
    unbounded, origin = ThreatModel(threat.p), torch.zeros_like(flat)
    return steepest(falling[:, None], unbounded, origin, torch.ones_like(flat[:, 0])).view(gradient.shape)


def project(change: Float[Tensor, "n ..."], threat: ThreatModel, eps: Float[Tensor, " n"]) -> Float[Tensor, "n ..."]:
    """Project a change onto the L1, L2 or Linf ball of radius eps: return the nearest point in L2."""
    flat, reach = change.flatten(1), eps[:, None]
    if threat.p == math.inf:
        return torch.minimum(torch.maximum(flat, -reach), reach).view(change.shape)
    length = torch.linalg.vector_norm(flat, ord=threat.p, dim=1, keepdim=True)
    if threat.p == 2:
        shorter: Tensor = flat * (reach / length.clamp(min=1e-300)).clamp(max=1)
        return shorter.view(change.shape)
    ordered = flat.abs().sort(dim=1, descending=True).values
    count = torch.arange(1, flat.shape[1] + 1, device=flat.device)
    surplus = (ordered.cumsum(dim=1) - reach) / count  # to be subtracted, if that many entries remain
    remain = (ordered > surplus).sum(dim=1, keepdim=True).clamp(min=1)
    off = surplus.gather(1, remain - 1).clamp(min=0)
    return (flat.sign() * (flat.abs() - off).clamp(min=0)).view(change.shape)


def greedy(
    exact: Classifier,
    x: Float[Tensor, "n ..."],
    label: Int[Tensor, " n"],
    bounds: Bounds,
    *,
    changes: int,
    rival: Int[Tensor, " n"],
) -> Float[Tensor, "n ..."]:
    """Move the coordinate with most gain to an end of the box, one after the other (after Papernot et al., 2016)."""
    points, free = x.clone(), torch.ones_like(x, dtype=torch.bool).flatten(1)
    low, high = ((torch.zeros_like(x) + end).flatten(1) for end in bounds)
    for _ in range(min(changes, free.shape[1])):
        going = ~differs(exact, points, label)
        if not bool(going.any()):
            break
        points.requires_grad_(True)
        logits = exact.module(points)
        ahead = (logits.gather(1, rival[:, None]) - logits.gather(1, label[:, None])).sum()
        (gradient,) = torch.autograd.grad(ahead, points)
        slope, flat = gradient.flatten(1), points.detach().flatten(1)
        end = torch.where(slope > 0, high, low)
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
    bounds: Bounds,
    *,
    steps: int,
    searches: int = 8,
    rival: Int[Tensor, " n"],
) -> Float[Tensor, "n ..."]:
    """Minimise c |r|^2 + the rival's cross-entropy at x + r, in the box, and search for the largest c that fools.

    This is the first attack (Szegedy et al., 2014), with SciPy's L-BFGS-B on the sum over all inputs; each has its c.
    """
    found, view = x.clone(), shape(x)
    low, high = torch.full_like(x.flatten(1)[:, 0], -4.0), torch.full_like(x.flatten(1)[:, 0], 2.0)  # of log10 c
    box = [(torch.zeros_like(x) + end).flatten().cpu().numpy() for end in bounds]
    for _ in range(searches):
        weight = 10.0 ** ((low + high) / 2)
        result = optimize.minimize(
            _penalised(exact, x, weight, rival), x.flatten().cpu().numpy(), jac=True, method="L-BFGS-B",
            bounds=optimize.Bounds(*box), options={"maxiter": steps},
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
