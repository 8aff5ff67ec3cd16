r"""Splitting noise against L1, in its random and its deterministic form (Levine and Feizi, 2021).

Each coordinate of [0, 1] is cut at the points $s_i + 2 \lambda k$, with $s_i$ uniform in $[0, 2 \lambda)$. The
classifier sees the middle of the piece in which $x_i$ lies. A change of $\delta_i$ moves $x_i$ into another piece with
probability at most $|\delta_i| / 2 \lambda$. So by the union bound, however the $s_i$ depend on one another, each
probability of a class is $1/2\lambda$-Lipschitz in L1, and the radius is $\lambda (p_A - p_B)$. Inputs are first
projected on [0, 1], which lengthens no distance, so the claim holds in all of R^d.

The certified function is the smoothed classifier. The base classifier must have been trained for it:
`Splitting.perturb` is the noise. The published tables write $\lambda = \sqrt 3 \sigma$.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.core.certificate import Certificate
from certbench.core.certifier import Certifier
from certbench.core.claims import ABSTAIN, Guarantee, Subject
from certbench.core.classifier import Classifier
from certbench.core.evidence import ShiftsEvidence, SplittingEvidence
from certbench.core.memory import Cost
from certbench.core.ranges import Alpha, PositiveFloat, PositiveInt, Seed
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError
from certbench.verifiers.smoothing.counting import Counter, rows_of, tally
from certbench.verifiers.smoothing.votes import Draws, Rule, VoteState, sample

NEAR = 1e-4
"""Largest distance of a value from the grid, in its steps: float32 moves multiples of 1/255 by up to 2e-5 of a step."""


@dataclass(frozen=True)
class Splitting:
    """Splitting noise with independent cuts.

    Attributes:
        lam: half the distance between cuts.
    """

    lam: float

    def perturb(self, point: Float[Tensor, " d"], stream: np.random.Generator, n: int) -> Float[Tensor, "n d"]:
        """Return the middles of the pieces: a function of the cuts around each coordinate alone, in float64 too."""
        width = 2 * self.lam
        cuts = torch.from_numpy(stream.random((n, len(point)))).mul_(width)
        point = point.double().clamp(0, 1)
        if width >= 1:  # the least cut at or above x is s, or s + width >= 1
            return cuts.clamp(max=1).add_(point > cuts).div_(2)
        index = ((point - cuts) / width).ceil_()
        index += (cuts + width * index < point).double()  # comparisons decide, not the rounding of the quotient
        index -= (cuts + width * (index - 1) >= point).double()
        return (cuts + width * index).clamp_(max=1).add_((cuts + width * (index - 1)).clamp_(min=0)).div_(2)


@dataclass(frozen=True)
class SplittingSmoothing(Certifier[VoteState]):
    """Splitting noise against L1, sampled (Levine and Feizi, 2021).

    With probability at least 1 - alpha per input, the smoothed classifier gives the certified class at every point
    within the radius. Cuts are compared with inputs, not added to them, so this holds for the float program as well
    (a margin for the rounding of cuts is taken off), as far as the random stream is random.

    Attributes:
        lam: half the distance between cuts.
        n: draws that estimate the probabilities.
        n0: draws that select the class, independent of these.
        alpha: probability that an input's certificate is wrong.
        rule: `one-vs-rest` bounds the runner-up by 1 - p_A; `two-class` bounds both from the counts, at alpha / 2.
    """

    lam: PositiveFloat = 0.5
    n: Draws = 100_000
    n0: Draws = 100
    alpha: Alpha = 0.001
    rule: Rule = "two-class"

    guarantee = Guarantee.PROBABILISTIC
    subject = Subject.SMOOTHED
    norms = frozenset({1.0})
    version = 2

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> VoteState:
        """Prepare a counter of votes."""
        return self.fitting(VoteState(Counter.of(classifier, Splitting(self.lam)), threat))

    def cost(self, state: VoteState) -> Cost:
        """Predict the draws."""
        return state.counter.cost(self.n0 + self.n)

    def certify(self, state: VoteState, x: Float[Tensor, "n ..."], seeds: Sequence[int]) -> Certificate:
        """Select, estimate and bound; abstain where no radius is left.

        Raises:
            ConfigError: inputs outside [0, 1].
        """
        check_range(x)
        predictions, radii, evidence = [], [], []
        for vote in sample(state.counter, x, seeds, self.n0, self.n, self.alpha, self.rule):
            radius = self.radius(vote.p_lower, vote.p_upper, x[0].numel())
            predictions.append(vote.top if radius > 0 else ABSTAIN)
            radii.append(radius)
            evidence.append(vote.evidence(SplittingEvidence, lam=self.lam))
        return Certificate.of(torch.tensor(predictions), torch.tensor(radii, dtype=torch.float64), evidence=evidence)

    def radius(self, p_lower: float, p_upper: float, d: int) -> float:
        r"""Return $\lambda (p_A - p_B)$ in d dimensions, rounded down; 0 for "abstain".

        The draws of a cut are the multiples of $2^{-53}$ and the cuts are rounded. So the probability of separating two
        floats may exceed $|\delta_i| / 2 \lambda$ by $2^{-49} (1 + 1 / 2 \lambda)$ per coordinate.
        """
        rounding = d * Fraction(1, 2**49) * (1 + 2 * Fraction(self.lam))
        return down(Fraction(self.lam) * (Fraction(p_lower) - Fraction(p_upper)) - rounding)


@dataclass(frozen=True, eq=False)
class ExactState:
    """The base classifier and the threat model."""

    classifier: Classifier
    threat: ThreatModel


@dataclass(frozen=True)
class DeterministicSplitting(Certifier[ExactState]):
    """Splitting noise against L1, derandomised (Levine and Feizi, 2021): exact counts, no alpha.

    For values on a grid, j / grid, the cuts (v_i + t + 1/2) / grid shift together, t = 0, 1, .... The offsets v_i are
    drawn once and belong to the smoothed classifier. One step of one coordinate crosses a cut for exactly one t, so m
    steps in all change at most m votes.

    The claim about the smoothed classifier is sound. With `points="grid"`, as published, it is about perturbed inputs
    ON THE GRID alone (8-bit images, where the grid is 255), and other inputs are refused. With `points="all"` it is
    about all of R^d: the radius is then the least L1 cost of crossing m + 1 cuts, half of it for inputs on the grid.

    Attributes:
        lam: half the distance between cuts; floor(2 lam grid) votes are taken.
        grid: steps between 0 and 1.
        points: the perturbed inputs that count.
        offsets: seed of the v_i.
    """

    lam: PositiveFloat = 0.5
    grid: PositiveInt = 255
    points: Literal["grid", "all"] = "grid"
    offsets: Seed = 0

    guarantee = Guarantee.SOUND
    subject = Subject.SMOOTHED
    norms = frozenset({1.0})

    def check_together(self) -> None:
        """Refuse cuts that are closer than the grid."""
        if self.levels < 1:
            raise ConfigError(f"lam {self.lam} is below half a step of the grid, 1/{2 * self.grid}", ("lam",))

    @property
    def levels(self) -> int:
        """Number of votes: 2 lambda in steps of the grid."""
        return math.floor(2 * self.lam * self.grid + 1e-9)

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> ExactState:
        """Store the arguments; there is nothing to compute."""
        return ExactState(classifier, threat)

    def certify(self, state: ExactState, x: Float[Tensor, "n ..."], seeds: Sequence[int]) -> Certificate:
        """Count all votes; the class is known even where the radius is 0, unless no vote was a number.

        Raises:
            ConfigError: inputs lie outside [0, 1], or off the grid if only its points count.
        """
        del seeds
        check_range(x)
        steps = x.cpu().double() * self.grid
        if self.points == "grid" and bool(((steps - steps.round()).abs() > NEAR).any()):
            raise ConfigError(
                f"inputs are no multiples of 1/{self.grid}; give the grid of the data, round them, or write points: all"
            )
        predictions, radii, evidence = [], [], []
        for point in steps.flatten(1):
            counts = self.votes(state.classifier, point.round().long())
            top, room = ranking(counts, 1)
            predictions.append(top if sum(counts) else ABSTAIN)
            radii.append(self.radius(room, point) if sum(counts) else 0.0)
            evidence.append(
                ShiftsEvidence(
                    counts=tuple(counts),
                    n=self.levels,
                    lam=self.lam,
                    grid=self.grid,
                    points=self.points,
                    offsets=self.offsets,
                    claim=f"multiples of 1/{self.grid} only" if self.points == "grid" else "all perturbed inputs",
                )
            )
        return Certificate.of(torch.tensor(predictions), torch.tensor(radii, dtype=torch.float64), evidence=evidence)

    def radius(self, changes: int, steps: Float[Tensor, " d"]) -> float:
        """Return the L1 radius where at most so many votes change, rounded down; `steps` is input times grid."""
        if self.points == "grid":
            return changes / self.grid
        # The nearest cut of a coordinate is at most half a step away; each further one costs a whole step.
        nearest = (0.5 - (steps - steps.round()).abs() - 1e-9).clamp(min=0).sort().values[: changes + 1]
        total = float(nearest.sum()) * (1 - 1e-12) + max(0, changes + 1 - len(steps))
        return math.nextafter(total / self.grid, 0)

    def votes(self, classifier: Classifier, point: Int[Tensor, " d"]) -> list[int]:
        """Count the votes for each class at an input given in steps of the grid."""
        total, size = torch.zeros(classifier.num_classes, dtype=torch.int64), rows_of(len(point))
        for start in range(0, self.levels, size):
            seen = self.pieces(point, torch.arange(start, start + size))  # beyond the levels they repeat
            logits = classifier(seen.view(size, *classifier.input_shape))
            total += tally(logits[: self.levels - start])
        return [int(votes) for votes in total]

    def pieces(self, point: Int[Tensor, " d"], t: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Return the middles of the pieces in which each coordinate lies, for each shift t of the cuts, in integers."""
        stream = np.random.Generator(np.random.SFC64(self.offsets))
        drawn = torch.from_numpy(stream.integers(0, self.levels, len(point)))
        first = (drawn + t[:, None]) % self.levels
        index = -((first - point).div(self.levels, rounding_mode="floor"))  # ceil((point - first) / levels)
        above = 2 * (first + self.levels * index) + 1  # in half steps
        return (above.clamp(max=2 * self.grid) + (above - 2 * self.levels).clamp(min=0)).double() / (4 * self.grid)


def ranking(votes: Sequence[int], each: int) -> tuple[int, int]:
    """Return the winner, ties to the first, and how many changes, of up to `each` votes, surely leave it the winner.

    Every change may take a vote from the winner and give one to any other class.
    """
    top = max(range(len(votes)), key=lambda label: votes[label])
    room = min(votes[top] - count - (label < top) for label, count in enumerate(votes) if label != top)
    return top, room // (2 * each)


def down(value: Fraction) -> float:
    """Return a float at most as large as the fraction, not below 0."""
    rounded = float(value)
    return max(0.0, rounded if Fraction(rounded) <= value else math.nextafter(rounded, -math.inf))


def check_range(x: Float[Tensor, "n ..."]) -> None:
    """Refuse inputs outside [0, 1].

    Raises:
        ConfigError: there are some.
    """
    if len(x) and (x.min() < 0 or x.max() > 1):
        raise ConfigError(
            f"inputs lie between {float(x.min()):g} and {float(x.max()):g}; this noise is for [0, 1], "
            "so rescale them and put the normalisation inside the classifier"
        )
