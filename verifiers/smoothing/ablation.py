r"""Smoothing against L0: discrete noise (Lee et al., 2019) and randomized ablation (Levine and Feizi, 2020).

A radius r says that r changes are tolerated, whatever the new values. Both noises are drawn exactly, by integers, and
give values that carry no rounding of the input. So the claims hold for the float program as well, as far as the random
stream is random.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from certbench.core.certificate import Certificate
from certbench.core.certifier import Certifier
from certbench.core.claims import ABSTAIN, Guarantee, Subject
from certbench.core.classifier import Classifier
from certbench.core.evidence import AblationEvidence, DiscreteEvidence
from certbench.core.memory import Cost
from certbench.core.ranges import Alpha, PositiveInt, between
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError, UnsupportedError
from certbench.verifiers.smoothing.counting import Counter
from certbench.verifiers.smoothing.splitting import check_range
from certbench.verifiers.smoothing.votes import Draws, Rule, VoteState, sample

LIMIT = 256
"""Largest radius that `DiscreteSmoothing` looks for, so that weak noise does not take hours."""


@dataclass(frozen=True)
class Replacement:
    """Noise that replaces values by others of the grid.

    Attributes:
        keep: probability that a value stays.
        grid: steps between 0 and 1.
    """

    keep: float
    grid: int

    @property
    def probability(self) -> Fraction:
        """Probability that a value stays, exact: the share of the 2^53 values of a draw that lie below `keep`."""
        return Fraction(math.ceil(Fraction(self.keep) * 2**53), 2**53)

    def perturb(self, point: Float[Tensor, " d"], stream: np.random.Generator, n: int) -> Float[Tensor, "n d"]:
        """Draw noisy copies of a flat input, which is rounded to the grid first."""
        own = (point.double().clamp(0, 1) * self.grid).round().numpy().astype(np.int32)
        kept = stream.random((n, len(own))) < self.keep
        other = stream.integers(0, self.grid, (n, len(own)), dtype=np.int32)
        other += other >= own
        return torch.from_numpy(np.where(kept, own, other)).double() / self.grid


@dataclass(frozen=True)
class DiscreteSmoothing(Certifier[VoteState]):
    """Discrete noise against L0, sampled (Lee et al., 2019), certified exactly in integers.

    Each coordinate keeps its value with probability `keep`, or takes each of the `grid` other values of the grid with
    equal probability. Inputs are rounded to the grid first, as a part of the smoothed classifier. Coordinates that are
    equal stay equal, so perturbed inputs may have any values.

    Attributes:
        keep: probability that a coordinate keeps its value. Above 1 / (grid + 1), which is all noise.
        grid: steps between 0 and 1: 255 for 8-bit images, 1 for black and white.
        pixels: whether the radius counts pixels, that is positions with all their channels, of inputs with three axes.
        n: draws that estimate the probabilities.
        n0: draws that select the class, independent of these.
        alpha: probability that an input's certificate is wrong.
        rule: `one-vs-rest` bounds the runner-up by 1 - p_A; `two-class` bounds both from the counts, at alpha / 2.
    """

    keep: Annotated[float, between(0, 1, "neither")] = 0.2
    grid: Annotated[int, between(1, 2**31, "left")] = 255
    pixels: bool = False
    n: Draws = 100_000
    n0: Draws = 100
    alpha: Alpha = 0.001
    rule: Rule = "two-class"

    guarantee = Guarantee.PROBABILISTIC
    subject = Subject.SMOOTHED
    norms = frozenset({0.0})
    version = 2

    def check_together(self) -> None:
        """Refuse noise that leaves nothing of the input."""
        if not 1 / (self.grid + 1) < self.keep:
            raise ConfigError(f"keep must be above 1/{self.grid + 1}, which is all noise, not {self.keep}", ("keep",))

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> VoteState:
        """Prepare a counter of votes."""
        return self.fitting(VoteState(Counter.of(classifier, Replacement(self.keep, self.grid)), threat))

    def cost(self, state: VoteState) -> Cost:
        """Predict the draws."""
        return state.counter.cost(self.n0 + self.n)

    def certify(self, state: VoteState, x: Float[Tensor, "n ..."], seeds: Sequence[int]) -> Certificate:
        """Select, estimate and bound; abstain where the bounds cross: then even the input's own class is open.

        Raises:
            ConfigError: inputs outside [0, 1].
        """
        check_range(x)
        each = x.shape[1] if self.pixels and x.dim() == 4 else 1
        predictions, radii, evidence = [], [], []
        for vote in sample(state.counter, x, seeds, self.n0, self.n, self.alpha, self.rule):
            predictions.append(vote.top if vote.p_lower > vote.p_upper else ABSTAIN)
            radii.append(self.radius(vote.p_lower, vote.p_upper, x[0].numel()) // each)
            unit = "pixels" if each > 1 else "coordinates"
            evidence.append(vote.evidence(DiscreteEvidence, keep=self.keep, grid=self.grid, unit=unit))
        return Certificate.of(torch.tensor(predictions), torch.tensor(radii, dtype=torch.float64), evidence=evidence)

    def radius(self, p_lower: float, p_upper: float, d: int) -> int:
        """Return the largest number of changed coordinates, of d, after which p_A still exceeds p_B, at most `LIMIT`.

        The worst classifier gives A the outcomes that changes make rarest, and B the outcomes that changes make most
        common. One classifier can do both, so this is tight.
        """
        low, rest = Fraction(p_lower), 1 - Fraction(p_upper)
        if not low > 1 - rest:
            return 0
        for r, shares in enumerate(itertools.islice(self._shares(), min(d, LIMIT)), start=1):
            if not self._worst(low, shares) > 1 - self._worst(rest, shares):
                return r - 1
        return min(d, LIMIT)

    def worst(self, p: float | Fraction, r: int) -> Fraction:
        r"""Return the least probability that a set of probability p can have after r changes, by Neyman and Pearson.

        Only the changed coordinates matter. An outcome in which i of them have their old values and j their new ones
        had probability $a^i b^j$ and has $b^i a^j$, with $b = (1 - a) / K$. So the worst set takes outcomes in
        descending order of i - j.
        """
        return self._worst(Fraction(p), next(itertools.islice(self._shares(), r - 1, None)))

    def threshold(self, r: int) -> Fraction:
        """Return the least p that is certified at r against the rest: `worst(p, r) = 1/2`."""
        shares = next(itertools.islice(self._shares(), r - 1, None))
        total = sum(shares)
        spent, kept = 0, 0
        for before, after in zip(reversed(shares), shares, strict=True):
            if 2 * (kept + after) > total:
                return (spent + before * Fraction(total - 2 * kept, 2 * after)) / total
            spent, kept = spent + before, kept + after
        raise AssertionError("the shares of all outcomes are 1 together")

    def _shares(self) -> Iterator[list[int]]:
        """Yield the probabilities of i - j = -r, ..., r at the input, times (K D)^r, for each r; reversed, after."""
        a = Replacement(self.keep, self.grid).probability
        same, other = a.numerator * self.grid, a.denominator - a.numerator
        shares = [1]
        while True:
            padded = [0, 0, *shares, 0, 0]
            shares = [
                padded[i] * same + padded[i + 1] * (self.grid - 1) * other + padded[i + 2] * other
                for i in range(len(padded) - 2)
            ]
            yield shares

    @staticmethod
    def _worst(p: Fraction, shares: list[int]) -> Fraction:
        total = sum(shares)
        left, kept = p * total, Fraction(0)
        for before, after in zip(reversed(shares), shares, strict=True):
            if left <= before:
                return (kept + after * left / before) / total
            left, kept = left - before, kept + after
        return kept / total


@dataclass(frozen=True)
class Ablation:
    """Noise that shows some positions, and hides the others.

    Attributes:
        keep: number of positions that it shows.
        channels: entries at each position, `d / channels` apart.
        hidden: value at the hidden positions; NaN for `TwoChannel` to read.
    """

    keep: int
    channels: int
    hidden: float

    def perturb(self, point: Float[Tensor, " d"], stream: np.random.Generator, n: int) -> Float[Tensor, "n d"]:
        """Draw copies of a flat input. Each set of positions is equally likely: Floyd's algorithm on exact integers."""
        positions = len(point) // self.channels
        shown, rows = np.zeros((n, positions), dtype=bool), np.arange(n)
        for last in range(positions - self.keep, positions):
            drawn = stream.integers(0, last + 1, n)
            shown[rows, np.where(shown[rows, drawn], last, drawn)] = True
        mask = torch.from_numpy(shown)[:, None].expand(n, self.channels, positions).reshape(n, -1)
        return torch.where(mask, point, self.hidden)


class TwoChannel(nn.Module):
    """A layer that writes images with hidden entries, NaN, as pairs (x, 1 - x) (Levine and Feizi, 2020).

    A hidden entry becomes (0, 0). This is the first layer of a classifier; the next layer takes twice the channels.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Turn `(n, c, ...)` into `(n, 2 c, ...)`."""
        return torch.cat([x, 1 - x], dim=1).nan_to_num(nan=0.0)


@dataclass(frozen=True)
class RandomizedAblation(Certifier[VoteState]):
    r"""Randomized ablation against L0, sampled (Levine and Feizi, 2020).

    The classifier sees `keep` of the pixels, chosen at random. With probability
    $\Delta_r = 1 - {d - r \choose k} / {d \choose k}$ it sees one of r changed pixels. So r changes are tolerated if
    $p_A - \Delta_r > p_B + \Delta_r$, which is tight.

    Attributes:
        keep: pixels that the classifier sees.
        encode: what hides the others: NaN, for a classifier that begins with `TwoChannel`, or zero.
        pixels: whether a pixel is a position with all its channels (for inputs with three axes), or one number.
        n: draws that estimate the probabilities.
        n0: draws that select the class, independent of these.
        alpha: probability that an input's certificate is wrong.
        rule: `one-vs-rest` bounds the runner-up by 1 - p_A; `two-class` bounds both from the counts, at alpha / 2.
    """

    keep: PositiveInt = 45
    encode: Literal["two-channel", "zero"] = "zero"
    pixels: bool = True
    n: Draws = 100_000
    n0: Draws = 100
    alpha: Alpha = 0.001
    rule: Rule = "two-class"

    guarantee = Guarantee.PROBABILISTIC
    subject = Subject.SMOOTHED
    norms = frozenset({0.0})
    version = 2

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> VoteState:
        """Check that the classifier can read the hidden pixels.

        Raises:
            UnsupportedError: fewer pixels than `keep`, or NaN in the logits where pixels are hidden.
        """
        positions = math.prod(classifier.input_shape) // self._channels(classifier.input_shape)
        if self.keep > positions:
            raise UnsupportedError(f"keep is {self.keep}, but {classifier.name} takes {positions} pixels")
        if self.encode == "two-channel":
            readable(classifier)
        channels = self._channels(classifier.input_shape)
        noise = Ablation(self.keep, channels, math.nan if self.encode == "two-channel" else 0.0)
        return self.fitting(VoteState(Counter.of(classifier, noise), threat))

    def cost(self, state: VoteState) -> Cost:
        """Predict the draws."""
        return state.counter.cost(self.n0 + self.n)

    def certify(self, state: VoteState, x: Float[Tensor, "n ..."], seeds: Sequence[int]) -> Certificate:
        """Select, estimate and bound; abstain where the bounds cross: then even the input's own class is open."""
        channels = self._channels(state.counter.classifier.input_shape)
        predictions, radii, evidence = [], [], []
        for vote in sample(state.counter, x, seeds, self.n0, self.n, self.alpha, self.rule):
            predictions.append(vote.top if vote.p_lower > vote.p_upper else ABSTAIN)
            radii.append(self.radius(vote.p_lower, vote.p_upper, x[0].numel() // channels))
            unit = "pixels" if channels > 1 else "coordinates"
            evidence.append(vote.evidence(AblationEvidence, keep=self.keep, encode=self.encode, unit=unit))
        return Certificate.of(torch.tensor(predictions), torch.tensor(radii, dtype=torch.float64), evidence=evidence)

    def radius(self, p_lower: float, p_upper: float, positions: int) -> int:
        """Return the largest number of changed pixels after which p_A still exceeds p_B."""
        gap, unseen, r = Fraction(p_lower) - Fraction(p_upper), Fraction(1), 0
        while r < positions:
            unseen *= Fraction(max(positions - self.keep - r, 0), positions - r)
            if not gap > 2 * (1 - unseen):
                break
            r += 1
        return r

    def _channels(self, shape: tuple[int, ...]) -> int:
        return shape[0] if self.pixels and len(shape) == 3 else 1


def readable(classifier: Classifier) -> None:
    """Refuse a classifier that cannot read hidden entries.

    Raises:
        UnsupportedError: its logits are not finite where all entries are hidden.
    """
    if not bool(classifier(torch.full((1, *classifier.input_shape), math.nan)).isfinite().all()):
        raise UnsupportedError(
            f"{classifier.name} cannot read hidden pixels, which are NaN; begin it with "
            "certbench.verifiers.smoothing.ablation.TwoChannel, or write encode: zero"
        )
