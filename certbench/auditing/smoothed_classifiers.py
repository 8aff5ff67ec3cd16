"""Attacks on smoothed classifiers, and the test of their certificates.

The gradient is that of Salman et al. (2019): through the mean of softmax over noise draws that are kept. What it finds
refutes nothing by itself: a smoothed classifier is never seen, only sampled. Algorithm PREDICT judges, on draws of its
own and at a level alpha' of its own. A certificate is wrong with probability alpha at most, and PREDICT names a wrong
class with probability alpha' at most; so an input's is refuted by chance with probability alpha + alpha' at most, and
those of n independent inputs more often than a binomial count only if something is broken.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import binom
from torch import Tensor
from torch.nn import functional

from certbench.attacks.gradient import project, shape
from certbench.core.claims import ABSTAIN
from certbench.core.classifier import Classifier
from certbench.core.threat import L2, ThreatModel
from certbench.verifiers.smoothing.counting import Shareable
from certbench.verifiers.smoothing.noise.integer import IntegerGaussian
from certbench.verifiers.smoothing.smoothing import Smoothing


def perturb(
    smoothing: Smoothing,
    classifier: Classifier,
    x: Float[Tensor, "n ..."],
    label: Int[Tensor, " n"],
    eps: Float[Tensor, " n"],
    threat: ThreatModel = L2,
    *,
    steps: int = 20,
    draws: int = 64,
    seed: int = 0,
) -> Float[Tensor, "n ..."]:
    """Points within eps of each input where the label is as unlikely under the noise as gradients make it.

    Projected gradient descent on the logarithm of the mean of softmax over draws that are kept, with steps of length
    2 eps / steps; the best iterate counts. Noise behind a layer is added there.

    Args:
        smoothing: the noise, and where it is added.
        classifier: the base classifier.
        x: inputs.
        label: the classes to be left.
        eps: finite radii.
        threat: L1, L2 or Linf, and the domain to stay in.
        steps: of the descent.
        draws: of the noise.
        seed: of the draws.
    """
    state = smoothing.prepare(classifier, threat)
    base, view = state.counter.classifier, shape(x)
    stream = np.random.Generator(np.random.SFC64(seed))
    generator = torch.Generator().manual_seed(seed)
    images = x.to(base.device, base.dtype)
    dimension, mechanism = math.prod(base.input_shape), state.counter.noise
    assert isinstance(mechanism, Shareable)
    noise = torch.from_numpy(mechanism.sample(stream, draws * len(x), dimension)).to(images)
    noise = noise.view(draws, len(x), dimension)
    reach = eps.to(images)
    change, best = torch.zeros_like(images), torch.zeros_like(images)
    least = torch.full((len(x),), torch.inf).to(images)
    for step in range(steps + 1):
        change.requires_grad_(True)
        features = state.prefix(images + change).flatten(1)
        features = functional.pad(features, (0, dimension - features.shape[1]))  # what later layers have added
        noisy = (features + noise).flatten(0, 1).view(-1, *base.input_shape)
        logits = base.module(noisy).view(draws, len(x), -1)
        own = logits.log_softmax(dim=2)[:, torch.arange(len(x)), label]
        likelihood = own.logsumexp(dim=0)
        gradient = torch.zeros_like(change)  # of a classifier that has none, too
        if likelihood.requires_grad:
            (gradient,) = torch.autograd.grad(likelihood.sum(), change)
        with torch.no_grad():
            better = likelihood < least
            best = torch.where(better.view(view), change, best)
            least = torch.where(better, likelihood, least)
            if step == steps:
                break
            stuck = ~gradient.flatten(1).any(dim=1)
            if bool(stuck.any()):  # any direction is as good
                gradient[stuck] = torch.randn(gradient[stuck].shape, generator=generator).to(images)
            pace = (2 * reach / steps).view(view)
            change = project(change - pace * _unit(gradient, threat.p), threat, reach)
            if threat.domain is not None:
                change = (images + change).clamp(*threat.domain) - images
    change = best.detach().cpu().double()
    length = torch.linalg.vector_norm(change.flatten(1), ord=threat.p, dim=1)
    inside = (eps.double() * (1 - 1e-9) / length.clamp(min=1e-300)).clamp(max=1)  # in spite of rounding
    change = change * inside.view(view)
    found: Tensor = x.cpu().double() + change
    if isinstance(smoothing.noise, IntegerGaussian):  # certificates are about the grid, and there is no noise elsewhere
        grid = smoothing.noise.grid
        found = ((x.cpu().double() * grid).round() + (change * grid).trunc()) / grid
    return found if threat.domain is None else found.clamp(*threat.domain)


def _unit(gradient: Float[Tensor, "n ..."], p: float) -> Float[Tensor, "n ..."]:
    """The direction of length 1 in which a linear function falls or grows most; in L1 on the tenth that is steepest."""
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


@dataclass(frozen=True)
class Test:
    """What the test of certificates came to.

    Attributes:
        tried: inputs for which a certificate was asked. Each may have got a wrong one with probability alpha; of those
            that got one, perhaps because it is wrong, nothing of the kind is known.
        tested: certificates that were attacked and judged.
        refuted: PREDICT answers with another class inside the radius.
        abstained: it cannot tell.
        alpha: probability that a certificate is wrong, as claimed.
        level: alpha', that PREDICT names a wrong class.
        p_value: so many refutations or more happen with this probability at most, if the certificates hold.
        shared: whether the certificates rest on the same draws, so that they fail together: then the p-value is
            Markov's bound, and no binomial's.
        inputs: those that were tried.
        hits: those of them where a certificate was refuted.
    """

    tried: int
    tested: int
    refuted: int
    abstained: int
    alpha: float
    level: float
    p_value: float
    shared: bool
    inputs: frozenset[int] = frozenset()
    hits: frozenset[int] = frozenset()

    __test__ = False

    @property
    def expected(self) -> float:
        """Refutations by chance, at most, on average."""
        return self.tried * self.alpha + self.tested * self.level


def chance(tried: int, refuted: int, rate: float, shared: bool) -> float:
    """Probability of so many refutations or more at so many inputs, at most, if all is as claimed.

    Each is refuted with probability `rate` at most. Independent ones: the binomial's tail. Others: Markov's bound.
    """
    if refuted == 0:
        return 1.0
    if shared:
        return min(1.0, tried * rate / refuted)
    return float(binom.sf(refuted - 1, tried, min(1.0, rate)))


def pooled(tests: Sequence[Test]) -> float:
    """Probability that so many inputs or more have a refutation in any of several tests, at most, if all is as claimed.

    Certificates of one input may fail together: classifiers, norms and radii meet the same noise there. Those of two
    inputs do not, unless draws are shared. So inputs are counted, each of which is refuted anywhere with the sum of the
    probabilities at most. Tests of either kind have half of the say.
    """
    value = 1.0
    for shared in (False, True):
        part = [test for test in tests if test.shared == shared]
        inputs = frozenset[int]().union(*(test.inputs for test in part))
        hits = frozenset[int]().union(*(test.hits for test in part))
        rate = sum(test.alpha + test.level for test in part)
        value = min(value, 2 * chance(len(inputs), len(hits), rate, shared))
    return value


def judge(
    smoothing: Smoothing,
    classifier: Classifier,
    points: Float[Tensor, "n ..."],
    *,
    level: float,
    draws: int,
    seed: int,
) -> Int[Tensor, " n"]:
    """PREDICT at these points with draws of each point's own: the class, wrong with probability `level`, or ABSTAIN."""
    predictor = replace(smoothing, n=draws, alpha=level, share=None)
    return predictor.predict(classifier, points, seed=seed)


def conclude(
    smoothing: Smoothing, tried: int, label: Int[Tensor, " n"], answer: Int[Tensor, " n"], *, level: float
) -> Test:
    """The test of n certificates for `label`, at points inside their radii where PREDICT gave these answers."""
    abstained = answer == ABSTAIN
    refuted = int(((answer != label) & ~abstained).sum())
    shared = smoothing.share is not None
    value = chance(tried, refuted, smoothing.alpha + level, shared)
    return Test(tried, len(label), refuted, int(abstained.sum()), smoothing.alpha, level, value, shared)
