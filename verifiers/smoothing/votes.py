"""Sampled votes: the common part of all certifiers that count them, from options to bounds of probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.core.evidence import VoteEvidence
from certbench.core.ranges import PositiveInt
from certbench.core.threat import ThreatModel
from certbench.verifiers.smoothing.confidence import binomial
from certbench.verifiers.smoothing.counting import ESTIMATION, SELECTION, Counter

Rule = Literal["two-class", "one-vs-rest"]
SomeVotes = TypeVar("SomeVotes", bound=VoteEvidence)

Draws = PositiveInt
"""Number of draws of the noise."""


def bounds(top: int, estimation: Sequence[int], n: int, alpha: float, rule: Rule = "two-class") -> tuple[float, float]:
    """Bound the probability of `top` from below and every other's from above, both at once with confidence 1 - alpha.

    Draws without a vote count as one more rival. `two-class` needs no union over classes: the bound is monotone in the
    count, and the true runner-up's count is at most the largest. If p_lower is at least 1/2, 1 - p_lower is exact; if
    it is less, it certifies nothing.
    """
    p_lower = binomial.lower(estimation[top], n, alpha if rule == "one-vs-rest" else alpha / 2)
    if rule == "one-vs-rest":
        return p_lower, 1 - p_lower
    return p_lower, min(binomial.upper(most_of_a_rival(top, estimation, n), n, alpha / 2), 1 - p_lower)


def most_of_a_rival(top: int, counts: Sequence[int], n: int) -> int:
    """Return the largest count of another class; draws without a vote count as one more rival."""
    return max([count for label, count in enumerate(counts) if label != top] + [n - sum(counts)])


@dataclass(frozen=True, eq=False)
class VoteState:
    """The counter, and the threat model."""

    counter: Counter
    threat: ThreatModel


@dataclass(frozen=True)
class Vote:
    """Two independent samples of votes, and the bounds that follow from them.

    Attributes:
        selection: counts that chose the class.
        estimation: counts that estimate the probabilities.
        top: the class.
        p_lower: lower bound of its probability.
        p_upper: upper bound of any other's; both hold with probability 1 - alpha.
        n: draws of the estimation.
        alpha: probability that a bound is wrong.
        rule: name of the rule for the bounds.
        seed: seed of the draws.
    """

    selection: list[int]
    estimation: list[int]
    top: int
    p_lower: float
    p_upper: float
    n: int
    alpha: float
    rule: Rule
    seed: int

    def evidence(self, kind: type[SomeVotes], **more: Any) -> SomeVotes:
        """Return the evidence that computes the certificate anew.

        `more` gives the fields of this kind beside the votes.
        """
        return kind(
            counts=tuple(self.estimation),
            selection=tuple(self.selection),
            n=self.n,
            alpha=self.alpha,
            rule=self.rule,
            p_lower=self.p_lower,
            p_upper=self.p_upper,
            seed=f"{self.seed:032x}",
            **more,
        )


@torch.no_grad()
def sample(
    counter: Counter, x: Float[Tensor, "n ..."], seeds: Sequence[int], n0: int, n: int, alpha: float, rule: Rule
) -> list[Vote]:
    """Select at each input on n0 draws, estimate on n others, and bound."""
    selections = counter.count(x, n0, seeds, SELECTION).tolist()
    estimations = counter.count(x, n, seeds, ESTIMATION).tolist()
    votes = []
    for selection, estimation, seed in zip(selections, estimations, seeds, strict=True):
        top = selection.index(max(selection))
        votes.append(Vote(selection, estimation, top, *bounds(top, estimation, n, alpha, rule), n, alpha, rule, seed))
    return votes
