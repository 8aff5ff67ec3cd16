"""Randomized smoothing with Gaussian noise (Cohen, Rosenfeld and Kolter, 2019).

Certified is the smoothed classifier g(x) = argmax_c P[f(x + N(0, sigma^2 I)) = c], not f. The counts of sampled
classes are the whole of the evidence: every radius is a function of counts, alpha and sigma.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import ndtri
from torch import Tensor

from certbench.certificate import Certificate
from certbench.certification import input_seed
from certbench.certifier import Certifier
from certbench.classifier import Classifier
from certbench.errors import ConfigError
from certbench.terms import ABSTAIN, Guarantee, Subject
from certbench.threat import ThreatModel
from certbench.verifiers import binomial

Rule = Literal["two-class", "one-vs-rest"]

SELECTION, ESTIMATION, PREDICTION = range(3)
"""Phases of the sampling; each has a random stream of its own."""

CHUNK = 1000
"""Draws per forward pass. Fixed, because logits differ in the last bits between batch shapes."""


@dataclass(frozen=True, eq=False)
class SmoothingState:
    """The base classifier, the threat model, and what turns an L2 radius into one of the threat model's norm."""

    classifier: Classifier
    threat: ThreatModel
    scale: float


@dataclass(frozen=True)
class GaussianSmoothing(Certifier[SmoothingState]):
    """Randomized smoothing, Gaussian noise (Cohen et al., 2019).

    With probability at least 1 - alpha per input, g(x') is the certified class for every x' within the radius. That
    is a statement about real arithmetic and ideal Gaussian noise: a base classifier made to read the rounding of
    x + noise can make it false (Voráček and Hein, 2023).

    Attributes:
        sigma: standard deviation of the noise, in units of the input.
        n: draws that estimate the probabilities.
        n0: draws that select the class, independent of those.
        alpha: probability that an input's certificate is wrong.
        rule: `one-vs-rest` is Cohen's CERTIFY, which bounds the runner-up by 1 - p_A; `two-class` bounds both
            from the counts, each at alpha / 2, and abstains less. No union over classes is needed: the bound is
            monotone in the count, and the true runner-up's count is at most the largest.
    """

    sigma: float = 0.25
    n: int = 100_000
    n0: int = 100
    alpha: float = 0.001
    rule: Rule = "two-class"

    guarantee = Guarantee.PROBABILISTIC
    subject = Subject.SMOOTHED
    norms = frozenset({1.0, 2.0, math.inf})

    def __post_init__(self) -> None:
        """Refuse what no run could use."""
        if not 0 < self.sigma < math.inf:
            raise ConfigError(f"sigma must be positive and finite, not {self.sigma}", ("sigma",))
        if not 0 < self.alpha < 1:
            raise ConfigError(f"alpha must lie between 0 and 1, not {self.alpha}", ("alpha",))
        for name in ("n", "n0"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}", (name,))
        if self.rule not in ("two-class", "one-vs-rest"):
            raise ConfigError(f"rule must be two-class or one-vs-rest, not {self.rule!r}", ("rule",))

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> SmoothingState:
        """L1: the L2 radius, since ||d||_2 <= ||d||_1. Linf: divided by sqrt(d), since ||d||_2 <= sqrt(d) ||d||_inf."""
        scale = 1.0
        if threat.p == math.inf:
            scale = math.nextafter(1 / math.sqrt(math.prod(classifier.input_shape)), 0)
        return SmoothingState(classifier, threat, scale)

    def certify(self, state: SmoothingState, x: Float[Tensor, "n ..."], seeds: Sequence[int]) -> Certificate:
        """Algorithm CERTIFY: select on n0 draws, estimate on n others, bound, and abstain if the bounds cross."""
        predictions, radii, evidence = [], [], []
        for point, seed in zip(x, seeds, strict=True):
            selection = counts(state.classifier, point, self.sigma, self.n0, seed, SELECTION)
            estimation = counts(state.classifier, point, self.sigma, self.n, seed, ESTIMATION)
            top = int(selection.argmax())
            radius, p_lower, p_upper = self.radius(top, estimation.tolist(), self.n)
            predictions.append(top if radius > 0 else ABSTAIN)
            radii.append(radius * state.scale)
            evidence.append(
                {
                    "counts": estimation.tolist(),
                    "selection": selection.tolist(),
                    "n": self.n,
                    "alpha": self.alpha,
                    "sigma": self.sigma,
                    "rule": self.rule,
                    "p_lower": p_lower,
                    "p_upper": p_upper,
                    "seed": f"{seed:032x}",
                }
            )
        return Certificate.of(torch.tensor(predictions), torch.tensor(radii, dtype=torch.float64), evidence=evidence)

    def radius(self, top: int, estimation: Sequence[int], n: int) -> tuple[float, float, float]:
        r"""L2 radius of class `top` given its estimation counts: $\sigma/2 (\Phi^{-1}(p_A) - \Phi^{-1}(p_B))$.

        Theorem 1 of Cohen et al., with p_A bounded from below and p_B from above, everything rounded outward. Draws
        whose logits were not finite voted for no class of the list, and count as one more rival.

        Returns:
            The radius, 0 for "abstain", and the two bounds.
        """
        own = estimation[top]
        rivals = max([count for label, count in enumerate(estimation) if label != top] + [n - sum(estimation)])
        if self.rule == "one-vs-rest":
            p_lower = binomial.lower(own, n, self.alpha)
            p_upper = 1 - p_lower
        else:
            p_lower = binomial.lower(own, n, self.alpha / 2)
            p_upper = min(binomial.upper(rivals, n, self.alpha / 2), 1 - p_lower)
        if not p_lower > p_upper:
            return 0.0, p_lower, p_upper
        high, low = float(ndtri(p_lower)), float(ndtri(p_upper))
        radius = self.sigma / 2 * (high - low) - 1e-12 * self.sigma * (abs(high) + abs(low))
        return max(radius, 0.0), p_lower, p_upper

    def predict(self, classifier: Classifier, x: Float[Tensor, "n ..."], *, seed: int = 0) -> Int[Tensor, " n"]:
        """Algorithm PREDICT: g(x), or `ABSTAIN` unless the two top counts of n draws differ at level alpha.

        A class returned is wrong with probability at most alpha (Proposition 2 of Cohen et al.).
        """
        predictions = []
        for point in x.to(classifier.device, torch.float64):
            sampled = counts(classifier, point, self.sigma, self.n, input_seed(seed, point), PREDICTION)
            first, second = sampled.topk(2).values.tolist()
            second = max(second, self.n - int(sampled.sum()))
            certain = first > second and binomial.even_chance(first, second) <= self.alpha
            predictions.append(int(sampled.argmax()) if certain else ABSTAIN)
        return torch.tensor(predictions, dtype=torch.int64)


def counts(
    classifier: Classifier, point: Float[Tensor, "..."], sigma: float, n: int, seed: int, phase: int
) -> Int[Tensor, " classes"]:
    """How often each class is predicted at `point` plus Gaussian noise, over n draws, on the CPU.

    The draws depend on the seed, the phase and their index alone. A draw whose logits are not all finite counts for
    no class, so the sum may fall short of n. Noise is NumPy's: torch's float32 normals end at 5.77 on the CPU.
    """
    stream = np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, phase])))
    base = point.to(classifier.device, classifier.dtype)
    total = torch.zeros(classifier.num_classes, dtype=torch.int64)
    for start in range(0, n, CHUNK):
        noise = stream.standard_normal((CHUNK, *point.shape), dtype=np.float32)
        noisy = torch.from_numpy(noise).to(base.device, base.dtype).mul_(sigma).add_(base)
        logits = classifier(noisy)[: n - start]
        labels = logits.argmax(dim=1)[logits.isfinite().all(dim=1)]
        total += torch.bincount(labels, minlength=classifier.num_classes).cpu()
    return total
