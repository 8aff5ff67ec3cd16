r"""CLEVER, an estimate of the distance to another class (Weng et al., 2018, arXiv 1801.10578). It proves nothing.

Around an input x, the margin $m_j = f_c - f_j$ cannot reach zero closer than $\min(m_j(x) / L_j, R)$, where $L_j$ is
the largest dual norm of its gradient in the ball of radius R. CLEVER guesses that maximum. It samples gradients, takes
the largest norm of each batch for a draw from a reverse Weibull distribution, and estimates $L_j$ as the endpoint of
that distribution, by maximum likelihood.

This is no certificate, no lower bound, and no evidence against an attack. Samples miss what is rare. If the gradient is
masked (a staircase, a saturated unit), every sample is small and the estimate is large, however close the nearest
counterexample lies: an estimate of a bound is no bound (Goodfellow, 2018, arXiv 1804.07870). So estimates are plain
numbers, kept apart from certificates. Reports print them beside the attacks, and count those that an attack refutes.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import optimize, stats
from torch import Tensor

from certbench.core.classifier import Classifier
from certbench.core.inputs import check_inputs, input_seed
from certbench.core.reduction import pieces
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError

VERSION = 1
"""Version of the computation. Raise it when the computation changes, so that old stored estimates are not reused."""

PENALTY = 0.01
"""Weight of the squared shape, which is subtracted from the log-likelihood, because that often has no maximum. Without
a penalty, a third of the fits on four networks of the zoo ran off to locations above 100 times the largest norm; with
it, no shape was above 27. The authors' code has a penalty of this weight too."""

START = (2.0, 0.1, 0.5)
"""Shape, location and scale at which the fit starts; the maxima are scaled to lie between -1 and 0."""


def clever(
    classifier: Classifier,
    x: Float[Tensor, "n ..."],
    threat: ThreatModel,
    *,
    radius: float,
    batches: int = 50,
    samples: int = 100,
    seed: int = 0,
) -> Float[Tensor, " n"]:
    """Estimate how far each input is from another class; any of these numbers may be too large.

    Args:
        classifier: a base classifier; gradients are taken in float64.
        x: `(n, *input_shape)`, inside the threat model's domain if it has one.
        threat: the norm. Samples are clipped to the domain, because only points in it count.
        radius: radius of the ball that is sampled, and the largest possible estimate.
        batches: number of maxima to which the distribution is fitted; 500 in the paper.
        samples: number of gradients per maximum; 1024 in the paper.
        seed: seed of the samples. An input's samples depend on the seed and the input alone.

    Returns:
        Estimates in float64: 0 if two classes tie, NaN if logits or gradients are not finite or there is no gradient.

    Raises:
        ConfigError: inputs have another shape, lie outside the domain or are not finite, or a setting is not positive.
    """
    x, threat = check_inputs(classifier, x, threat)
    if not (0 < radius < math.inf and batches > 0 and samples > 0):
        raise ConfigError(f"radius {radius}, batches {batches} and samples {samples} must be positive and finite")
    exact, x = classifier.double(), x.to(classifier.device, torch.float64)
    if threat.scale is not None:
        whole = torch.full((len(x),), torch.nan, dtype=torch.float64)
        for piece in pieces(classifier, x, threat):
            whole[piece.rows] = clever(
                piece.classifier, piece.z, piece.threat, radius=radius, batches=batches, samples=samples, seed=seed
            )
        return whole
    estimates = torch.full((len(x),), torch.nan, dtype=torch.float64)
    for i, point in enumerate(x):
        logits = exact(point[None])[0]
        label = int(logits.argmax())
        margins = (logits[label] - logits)[torch.arange(len(logits), device=x.device) != label].cpu()
        generator = torch.Generator().manual_seed(input_seed(seed, point) % 2**63)
        maxima = [
            _norms(exact, _sample(point, threat, radius, samples, generator), label, threat.q).amax(dim=0)
            for _ in range(batches)
        ]
        norms = torch.stack(maxima).cpu()
        if logits.isfinite().all() and norms.isfinite().all():
            steepest = torch.tensor([_endpoint(column.numpy()) for column in norms.T], dtype=torch.float64)
            reached = torch.where(margins > 0, margins / steepest, 0.0)
            estimates[i] = reached.amin().clamp(max=radius)
    return estimates


def _sample(
    x: Float[Tensor, " ..."], threat: ThreatModel, radius: float, samples: int, generator: torch.Generator
) -> Float[Tensor, "samples ..."]:
    """Draw points uniformly from the ball, then clip them to the domain."""
    d = x.numel()
    uniform = torch.rand(samples, d + 1, generator=generator, dtype=torch.float64)
    if threat.p == math.inf:
        change = 2 * uniform[:, :d] - 1
    elif threat.p == 2:
        normal = torch.randn(samples, d, generator=generator, dtype=torch.float64)
        change = normal / normal.norm(dim=1, keepdim=True) * uniform[:, :1] ** (1 / d)
    else:  # the first d of d + 1 exponential variables, divided by the sum of all, and with random signs
        waits = -torch.log1p(-uniform)
        signs = 2.0 * torch.randint(0, 2, (samples, d), generator=generator) - 1
        change = signs * waits[:, :d] / waits.sum(dim=1, keepdim=True)
    points = x + radius * change.view(samples, *x.shape).to(x.device)
    found: Tensor = threat.clamp(points)
    return found


def _norms(
    exact: Classifier, points: Float[Tensor, "samples ..."], label: int, q: float
) -> Float[Tensor, "samples others"]:
    """Compute dual norms of the gradients of f_label - f_j, for every other class j."""
    points.requires_grad_()
    others = [j for j in range(exact.num_classes) if j != label]
    result = torch.full((len(points), len(others)), torch.nan, dtype=torch.float64, device=points.device)
    with torch.enable_grad():
        logits = exact.module(points.clone())  # a module may work in place
        if logits.requires_grad:
            for k, j in enumerate(others):
                margin = (logits[:, label] - logits[:, j]).sum()
                (gradient,) = torch.autograd.grad(margin, points, retain_graph=k + 1 < len(others))
                result[:, k] = torch.linalg.vector_norm(gradient.flatten(1), ord=q, dim=1)
    return result


def _endpoint(maxima: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    """Estimate the endpoint of the reverse Weibull distribution of these maxima, at least the largest of them."""
    top = float(maxima.max())
    spread = top - float(maxima.min())
    if spread <= 1e-9 * top:  # the gradient is the same everywhere, as on a linear network
        return top
    _, location, _ = stats.weibull_max.fit(
        (maxima - top) / spread, START[0], loc=START[1], scale=START[2], optimizer=_penalised
    )
    return top + spread * float(location) if 0 < location < math.inf else top


def _penalised(negative: Any, start: Any, args: Any = (), disp: Any = 0) -> Any:
    """Minimise the negative log-likelihood plus the penalty on the shape, by Nelder and Mead's method."""
    return optimize.fmin(lambda theta, *data: negative(theta, *data) + PENALTY * theta[0] ** 2, start, args, disp=disp)
