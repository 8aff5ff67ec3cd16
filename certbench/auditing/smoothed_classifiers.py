"""Attacks on smoothed classifiers, and the test of their certificates.

The gradient is that of Salman et al. (2019): through the mean of softmax over noise draws that are kept. The points
that it finds refute nothing by themselves, because a smoothed classifier can only be sampled. Algorithm PREDICT judges
them, on draws of its own and at a level alpha' of its own. A certificate is wrong with probability alpha at most, and
PREDICT names a wrong class with probability alpha' at most. So the certificate of an input is refuted by chance with
probability alpha + alpha' at most. If n independent inputs have more refutations than a binomial count explains,
something is broken.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.attacks.gradient import project
from certbench.attacks.walk import shape
from certbench.core.smoothed import SmoothedClassifier
from certbench.core.threat import L2, ThreatModel


def perturb(
    smoothed: SmoothedClassifier,
    x: Float[Tensor, "n ..."],
    label: Int[Tensor, " n"],
    eps: Float[Tensor, " n"],
    threat: ThreatModel = L2,
    *,
    steps: int = 20,
    draws: int = 64,
    seed: int = 0,
) -> Float[Tensor, "n ..."]:
    """Return points within eps of each input where the label is as unlikely as gradients make it.

    The method is projected gradient descent on `smoothed.likelihood`, with steps of length 2 eps / steps; the best
    iterate counts.

    Args:
        smoothed: the smoothed classifier that is attacked.
        x: inputs.
        label: the certified classes.
        eps: finite radii.
        threat: L1, L2 or Linf, and the domain to stay in.
        steps: number of steps of the descent.
        draws: number of draws of the noise.
        seed: seed of the draws.
    """
    base, view = smoothed.base, shape(x)
    generator = torch.Generator().manual_seed(seed)
    images = x.to(base.device, base.dtype)
    likelihood_of = smoothed.likelihood(len(x), draws, seed)
    reach = eps.to(images)
    change, best = torch.zeros_like(images), torch.zeros_like(images)
    least = torch.full((len(x),), torch.inf).to(images)
    for step in range(steps + 1):
        change.requires_grad_(True)
        likelihood = likelihood_of(images + change, label)
        gradient = torch.zeros_like(change)  # stays 0 for a classifier without a gradient
        if likelihood.requires_grad:
            (gradient,) = torch.autograd.grad(likelihood.sum(), change)
        with torch.no_grad():
            better = likelihood < least
            best = torch.where(better.view(view), change, best)
            least = torch.where(better, likelihood, least)
            if step == steps:
                break
            stuck = ~gradient.flatten(1).any(dim=1)
            if bool(stuck.any()):  # without a gradient any direction will do
                gradient[stuck] = torch.randn(gradient[stuck].shape, generator=generator).to(images)
            pace = (2 * reach / steps).view(view)
            change = project(change - pace * _unit(gradient, threat.p), threat, reach)
            if threat.domain is not None:
                change = threat.clamp(images + change) - images
    change = best.detach().cpu().double()
    length = torch.linalg.vector_norm(change.flatten(1), ord=threat.p, dim=1)
    inside = (eps.double() * (1 - 1e-9) / length.clamp(min=1e-300)).clamp(max=1)  # even after rounding
    change = change * inside.view(view)
    found = smoothed.moved(x.cpu().double(), change)
    inside_domain: Tensor = threat.clamp(found)
    return inside_domain


def _unit(gradient: Float[Tensor, "n ..."], p: float) -> Float[Tensor, "n ..."]:
    """Return the direction of length 1 in which a linear function grows most; in L1, on its steepest tenth."""
    flat = gradient.flatten(1)
    if p == math.inf:
        return gradient.sign()
    if p == 2:
        unit: Tensor = flat / torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        return unit.view(gradient.shape)
    count = max(1, flat.shape[1] // 10)
    index = flat.abs().topk(count, dim=1).indices
    chosen = torch.zeros_like(flat).scatter(1, index, flat.gather(1, index).sign() / count)
    return chosen.view(gradient.shape)
