r"""Smoothing of scores instead of votes (Salman et al., 2019, Lemma 2), which MACER trains for (Zhai et al., 2020).

The smoothed scores are $\hat f_c(x) = E[\mathrm{softmax}_c(\beta f(x + N(0, \sigma^2 I)))]$, and the certified function
is $\arg\max_c \hat f_c$. It is neither f, nor the majority vote that `smoothing` certifies, nor the same at another
beta. Its radius is $\frac\sigma2(\Phi^{-1}(\hat f_A) - \Phi^{-1}(\hat f_B))$, from bounds of the two expectations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.core.certificate import Certificate
from certbench.core.certifier import Certifier
from certbench.core.claims import ABSTAIN, Guarantee, Subject
from certbench.core.classifier import Classifier
from certbench.core.evidence import SoftEvidence
from certbench.core.memory import Cost
from certbench.core.ranges import Alpha, PositiveFloat, Sigma, at_least
from certbench.core.threat import ThreatModel
from certbench.verifiers.smoothing.confidence import scores as confidence
from certbench.verifiers.smoothing.counting import ESTIMATION, SELECTION, Counter, rows_of
from certbench.verifiers.smoothing.noise.families import Gaussian
from certbench.verifiers.smoothing.votes import Draws, bounds

Bound = Literal["chernoff", "hoeffding", "bernstein", "sampled"]

UNIT = 2**30
"""Number of units in a score of 1. Scores are rounded to units, against the certificate, so their sums are exact."""

VOTE = 0x766F7465
"""Phase of the draws that turn a score into a vote, other than those of the noise."""


@dataclass(frozen=True)
class Sums:
    """Scores of noisy draws, rounded to units of 1 / `UNIT` and summed without error; of constant size.

    Attributes:
        draws: number of draws.
        sums: sums of each class's scores, in units.
        squares: sums of their squares.
    """

    draws: int
    sums: tuple[int, ...]
    squares: tuple[int, ...]

    def mean(self, c: int) -> float:
        """Return the mean of a class's scores."""
        return self.sums[c] / (self.draws * UNIT)

    def variance(self, c: int) -> float:
        """Return the unbiased variance of a class's scores."""
        spread = self.draws * self.squares[c] - self.sums[c] ** 2
        return spread / (self.draws * (self.draws - 1) * UNIT**2)


@dataclass(frozen=True, eq=False)
class SoftState:
    """The counter, the threat model, and the dimension of the input."""

    counter: Counter
    threat: ThreatModel
    dimension: int


@dataclass(frozen=True)
class SoftSmoothing(Certifier[SoftState]):
    """Smoothing of softmax scores under Gaussian noise (Salman et al., 2019, Lemma 2).

    With probability at least 1 - alpha per input, the class of the largest smoothed score is the certified one within
    the radius. Scores scale with the logits, so certificates depend on their scale, as on beta.

    Attributes:
        sigma: standard deviation of the noise, in units of the input.
        beta: inverse temperature of the softmax. As it grows, scores become votes.
        n: draws that estimate the scores.
        n0: draws that select the class, independent of these.
        alpha: probability that an input's certificate is wrong.
        bound: bound of the expectations. `chernoff` and `hoeffding` use the mean, `bernstein` the variance as well;
            `sampled` draws one class from each softmax and has the exact bounds of Clopper and Pearson for the counts.
    """

    sigma: Sigma = 0.25
    beta: PositiveFloat = 1.0
    n: Annotated[int, at_least(2, "a variance needs two draws")] = 100_000
    n0: Draws = 100
    alpha: Alpha = 0.001
    bound: Bound = "chernoff"

    guarantee = Guarantee.PROBABILISTIC
    subject = Subject.SMOOTHED
    norms = frozenset({1.0, 2.0, math.inf})

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> SoftState:
        """Prepare a counter; there is nothing to compute."""
        return self.fitting(
            SoftState(Counter.of(classifier, Gaussian(self.sigma)), threat, math.prod(classifier.input_shape))
        )

    def cost(self, state: SoftState) -> Cost:
        """Predict the draws."""
        return state.counter.cost(self.n0 + self.n)

    @torch.no_grad()
    def certify(self, state: SoftState, x: Float[Tensor, "n ..."], seeds: Sequence[int]) -> Certificate:
        """Select on n0 draws, bound the scores on n others, and abstain if the bounds cross."""
        state = replace(state, counter=state.counter.settled())
        predictions, radii, evidence = [], [], []
        for point, seed in zip(x, seeds, strict=True):
            top, selection = self.select(state.counter, point, seed)
            counts, sums, variances = None, None, None
            if self.bound == "sampled":
                counts = tuple(self.sample(state.counter, point, seed))
                p_lower, p_upper = self.of_counts(counts, top)
            else:
                sums = self.sum(state.counter, point, seed, top)
                p_lower, p_upper = self.of_sums(sums, top)
                if self.bound == "bernstein":
                    variances = tuple(sums.variance(c) for c in range(len(sums.sums)))
            radius = Gaussian(self.sigma).radius(p_lower, p_upper, state.threat.p, state.dimension)
            predictions.append(top if radius > 0 else ABSTAIN)
            radii.append(radius)
            evidence.append(
                SoftEvidence(
                    counts=counts,
                    sums=None if sums is None else sums.sums,
                    unit=None if sums is None else UNIT,
                    variances=variances,
                    n=self.n,
                    alpha=self.alpha,
                    bound=self.bound,
                    beta=self.beta,
                    sigma=self.sigma,
                    top=top,
                    selection=tuple(selection),
                    dimension=state.dimension,
                    seed=f"{seed:032x}",
                    p_lower=p_lower,
                    p_upper=p_upper,
                    more=state.counter.description().to_json(),
                )
            )
        return Certificate.of(torch.tensor(predictions), torch.tensor(radii, dtype=torch.float64), evidence=evidence)

    def select(self, counter: Counter, point: Float[Tensor, " ..."], seed: int) -> tuple[int, list[float]]:
        """Return the class of the largest mean score, and the means; draws that are not finite do not count."""
        nothing, size = torch.zeros(counter.classifier.num_classes, dtype=torch.float64), rows_of(point.numel())

        def add(total: Tensor, logits: Tensor, chunk: int) -> Tensor:
            del chunk
            return total + self.scores(logits).nan_to_num(0.0).sum(dim=0)

        total = counter.fold(point, self.n0, seed, SELECTION, size, ("means", self.beta), nothing, add)
        return int(total.argmax()), (total / self.n0).tolist()

    def scores(self, logits: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
        """Return the softmax of beta times the logits, on the CPU; NaN in the rows that are not finite."""
        exact = logits.to("cpu", torch.float64)
        return torch.where(exact.isfinite().all(dim=1, keepdim=True), (self.beta * exact).softmax(dim=1), math.nan)

    def sum(self, counter: Counter, point: Float[Tensor, " ..."], seed: int, top: int) -> Sums:
        """Sum the scores of n draws: of `top` rounded down, of the other classes up."""
        nothing, what = (0,) * counter.classifier.num_classes, ("sums", self.beta, top)

        def add(total: tuple[tuple[int, ...], tuple[int, ...]], logits: Tensor, chunk: int) -> tuple[Any, Any]:
            del chunk
            units = whole(self.scores(logits), top)
            high, low = units >> 15, units & (2**15 - 1)  # their products and sums stay below 2^63
            parts = [(part.sum(dim=0).tolist(), shift) for part, shift in
                     ((high * high, 30), (high * low, 16), (low * low, 0))]  # fmt: skip
            squares = [sum(part[c] << shift for part, shift in parts) for c in range(len(nothing))]
            return (
                tuple(before + now for before, now in zip(total[0], units.sum(dim=0).tolist(), strict=True)),
                tuple(before + now for before, now in zip(total[1], squares, strict=True)),
            )

        size = rows_of(point.numel())
        sums, squares = counter.fold(point, self.n, seed, ESTIMATION, size, what, (nothing, nothing), add)
        return Sums(self.n, sums, squares)

    def sample(self, counter: Counter, point: Float[Tensor, " ..."], seed: int) -> list[int]:
        """Count the classes drawn, one from each of n softmaxes; a softmax that is not finite gives none."""
        nothing, size = torch.zeros(counter.classifier.num_classes, dtype=torch.int64), rows_of(point.numel())

        def add(counts: Tensor, logits: Tensor, chunk: int) -> Tensor:
            stream = np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, VOTE, chunk])))
            drawn = sample_classes(self.scores(logits), stream)
            return counts + torch.bincount(drawn[drawn >= 0], minlength=len(counts))

        counts = counter.fold(point, self.n, seed, ESTIMATION, size, ("classes", self.beta), nothing, add)
        return list(counts.tolist())

    def of_counts(self, counts: Sequence[int], top: int) -> tuple[float, float]:
        """Bound the score of class `top` from below and every other's from above, by the classes drawn.

        Draws that gave no class are one more rival, as for votes.
        """
        return bounds(top, counts, self.n, self.alpha)

    def of_sums(self, sums: Sums, top: int) -> tuple[float, float]:
        """Return the same bounds from the scores.

        `bernstein` is not monotone in the mean, so it divides alpha / 2 among the rivals.
        """
        n, half = sums.draws, self.alpha / 2
        others = [c for c in range(len(sums.sums)) if c != top]
        own, rival = sums.mean(top), max(sums.mean(c) for c in others)
        if self.bound == "bernstein":
            share = half / len(others)
            low = confidence.bernstein_lower(own, sums.variance(top), n, half)
            high = max(confidence.bernstein_upper(sums.mean(c), sums.variance(c), n, share) for c in others)
        elif self.bound == "chernoff":
            low, high = confidence.chernoff_lower(own, n, half), confidence.chernoff_upper(rival, n, half)
        else:
            low, high = confidence.hoeffding_lower(own, n, half), confidence.hoeffding_upper(rival, n, half)
        return low, min(high, 1 - low)


def whole(scores: Float[Tensor, "n classes"], top: int) -> Int[Tensor, "n classes"]:
    """Return scores in units: rounded down for `top`, up for the others; NaN gives 0 for `top`, 1 for the others."""
    units = (scores * UNIT).ceil()
    units[:, top] = (scores[:, top] * UNIT).floor()
    lost = scores.isnan().any(dim=1)
    units[lost] = UNIT
    units[lost, top] = 0
    return units.clamp(0, UNIT).to(torch.int64)


def sample_classes(probabilities: Float[Tensor, "n classes"], stream: np.random.Generator) -> Int[Tensor, " n"]:
    """Draw one class per row, from the row's distribution; -1 where a row is not finite.

    If each row is a noisy draw, the counts of the classes are counts for `binomial`.
    """
    p = probabilities.detach().to("cpu", torch.float64)
    total = p.cumsum(dim=1)
    u = torch.from_numpy(stream.random(len(p)))[:, None] * total[:, -1:]
    drawn = (total <= u).sum(dim=1).clamp(max=p.shape[1] - 1)
    return torch.where(total[:, -1].isfinite(), drawn, -1)
