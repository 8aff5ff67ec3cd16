r"""Smoothing for the question whether the radius is at least r, with draws until that is clear (Voráček, 2024).

The radius of class A is at least r if its probability under noise is at least $p_0$, the probability at which the
noise's own certificate reaches r (for Gaussian noise and L2 $p_0 = \Phi(r / \sigma)$). A confidence sequence for that
probability is valid after any number of draws, and usually few draws decide.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.core.certificate import Certificate
from certbench.core.certifier import Certifier
from certbench.core.claims import ABSTAIN, Guarantee, Subject
from certbench.core.classifier import Classifier
from certbench.core.evidence import AdaptiveEvidence
from certbench.core.memory import Cost
from certbench.core.ranges import Alpha, PositiveFloat
from certbench.core.threat import ThreatModel
from certbench.errors import UnsupportedError
from certbench.verifiers.smoothing.confidence import scores
from certbench.verifiers.smoothing.counting import ESTIMATION, SELECTION, Counter, add_votes, rows_of
from certbench.verifiers.smoothing.noise.families import Gaussian, Noise
from certbench.verifiers.smoothing.votes import Draws


@dataclass(frozen=True, eq=False)
class AdaptiveState:
    """The counter, the threat model, and the probability that is enough.

    Attributes:
        counter: counter of the votes.
        threat: the threat model.
        dimension: dimension of the input.
        p0: probability of a class at which the noise certifies the radius.
    """

    counter: Counter
    threat: ThreatModel
    dimension: int
    p0: float


@dataclass(frozen=True)
class AdaptiveSmoothing(Certifier[AdaptiveState]):
    """Randomized smoothing for one radius, with as many draws as it takes (Voráček, 2024).

    It certifies the majority vote under noise, as `smoothing` does with its rule one-vs-rest, within exactly `radius`
    or not at all. With probability at least 1 - alpha per input, for any number of draws, a certificate is right.

    Attributes:
        noise: noise of the draws.
        radius: the radius in question, in the norm of the threat model.
        n: largest number of draws; without an answer by then it abstains.
        n0: draws that select the class, independent of these.
        alpha: probability that an input's certificate is wrong.
        step: draws between two looks at the votes.
    """

    noise: Noise = field(default_factory=Gaussian)
    radius: PositiveFloat = 0.25
    n: Draws = 100_000
    n0: Draws = 100
    alpha: Alpha = 0.001
    step: Draws = 100

    guarantee = Guarantee.PROBABILISTIC
    subject = Subject.SMOOTHED
    norms = frozenset({1.0, 2.0, math.inf})

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> AdaptiveState:
        """Find the probability that is enough.

        Raises:
            UnsupportedError: the noise never certifies the radius, or not even n draws that all agree would show it.
        """
        d = math.prod(classifier.input_shape)
        p0 = needed(self.noise, self.radius, threat.p, d)
        if p0 is None or scores.decide(self.n, self.n, p0, self.alpha) is not True:
            why = "at no probability" if p0 is None else f"at probability {p0:.9g}, which {self.n} draws cannot show"
            raise UnsupportedError(
                f"{type(self.noise).__name__} noise of sigma {self.noise.sigma:g} in dimension {d} certifies "
                f"{threat.name} radius {self.radius:g} {why}"
            )
        return self.fitting(AdaptiveState(Counter.of(classifier, self.noise), threat, d, p0))

    def cost(self, state: AdaptiveState) -> Cost:
        """Predict the draws."""
        return state.counter.cost(self.n0 + self.n)

    @torch.no_grad()
    def certify(self, state: AdaptiveState, x: Float[Tensor, "n ..."], seeds: Sequence[int]) -> Certificate:
        """Select on n0 draws, then look at others until they decide, run out, or can no longer certify."""
        state = replace(state, counter=state.counter.settled())
        predictions, evidence, classes = [], [], state.counter.classifier.num_classes
        for point, seed in zip(x, seeds, strict=True):
            size, nothing = min(self.n0, rows_of(point.numel())), torch.zeros(classes, dtype=torch.int64)
            selection = state.counter.fold(point, self.n0, seed, SELECTION, size, (), nothing, add_votes)
            top = int(selection.argmax())
            answer, successes, draws = self.ask(state, point, seed, top)
            predictions.append(top if answer else ABSTAIN)
            evidence.append(self._evidence(state, answer, successes, draws, seed, top, selection.tolist()))
        radii = [self.radius if prediction != ABSTAIN else 0.0 for prediction in predictions]
        return Certificate.of(torch.tensor(predictions), torch.tensor(radii, dtype=torch.float64), evidence=evidence)

    def ask(
        self, state: AdaptiveState, point: Float[Tensor, " ..."], seed: int, top: int
    ) -> tuple[bool | None, int, int]:
        """Decide whether class `top` has at least probability p0 (None: open); return its votes and the draws, too.

        The votes of the class count against all others, and against draws without a vote. Sampling ends early, without
        an answer, if the remaining draws could not certify even if all agreed: that certifies nothing more.
        """
        successes, draws = 0, 0
        size = min(self.step, rows_of(point.numel()))
        for votes in state.counter.votes(point, self.n, seed, ESTIMATION, size, top):
            successes += votes
            draws = min(draws + size, self.n)
            answer = scores.decide(successes, draws, state.p0, self.alpha)
            if answer is not None:
                return answer, successes, draws
            if scores.decide(successes + self.n - draws, self.n, state.p0, self.alpha) is not True:
                break
        return None, successes, draws

    def _evidence(
        self,
        state: AdaptiveState,
        answer: bool | None,
        successes: int,
        draws: int,
        seed: int,
        top: int,
        selection: list[int],
    ) -> AdaptiveEvidence:
        return AdaptiveEvidence(
            answer={True: "at least", False: "less", None: "open"}[answer],
            successes=successes,
            draws=draws,
            top=top,
            selection=tuple(selection),
            p0=state.p0,
            n=self.n,
            alpha=self.alpha,
            step=self.step,
            sigma=self.noise.sigma,
            scale=self.noise.scale(state.dimension),
            dimension=state.dimension,
            seed=f"{seed:032x}",
            more=state.counter.description().to_json(),
        )


def needed(noise: Noise, radius: float, p: float, d: int) -> float | None:
    """Return the smallest probability of a class, against all others together, for which `noise` has the radius.

    This probability does reach it, for any rounding; None if not even 1 does.
    """
    low, high = 0.5, 1.0
    if not noise.radius(high, 0.0, p, d) >= radius:
        return None
    while low < (middle := (low + high) / 2) < high:
        if noise.radius(middle, 1 - middle, p, d) >= radius:  # 1 - middle is exact
            high = middle
        else:
            low = middle
    return high
