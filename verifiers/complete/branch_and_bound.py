r"""Branch and bound with linear bounds: beta-CROWN (Wang et al., 2021), BaBSR (Bunel et al., 2020), GenBaB.

A leaf is a class j and a set of neurons whose sign is decided; where other functions than ReLUs are, a set of neurons
whose interval is cut at some point (GenBaB: Shi et al., 2024). On the part of the ball of radius e that a leaf leaves,
the engine gives a linear function below the margin $f_c - f_j$. Up to its crossing r there is no counterexample of
class j in the leaf. So the least r of all leaves is a certified radius at any time, and the leaf that has it is split
next. An attack, the minimisers of the leaves and exact programs on linear pieces give counterexamples. The search ends
where the two meet. For ReLU networks it does so after finitely many splits; for others it converges, and how close it
comes is a matter of time.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.attacks.frank_wolfe import Closest
from certbench.core.certificate import Certificate
from certbench.core.certifier import Certifier
from certbench.core.claims import Guarantee, Outcome
from certbench.core.classifier import Classifier
from certbench.core.evidence import TreeEvidence
from certbench.core.margins import NO_MARGIN, SLACK, clean_margin, margin_rows, tangent
from certbench.core.memory import Cost
from certbench.core.ranges import BatchSize, PositiveFloat, PositiveInt, RelativeTolerance, Seconds
from certbench.core.search import Secant
from certbench.core.threat import ThreatModel
from certbench.errors import NumericalError
from certbench.networks.folding import is_piecewise_linear
from certbench.networks.layers import Network
from certbench.networks.reading import read
from certbench.verifiers.bounds.costs import CLIMB, Sizes, relaxed
from certbench.verifiers.bounds.state import NetworkState, crown_radius
from certbench.verifiers.complete.tree import Answer, Tree, TreeOptions, widest


@dataclass(frozen=True)
class BranchAndBound(Certifier[NetworkState]):
    """Branch and bound with linear bounds (Bunel et al., 2020; Wang et al., 2021): exact, or a bracket.

    It takes every network that can be read. Continuous piecewise linear functions are written as sums of ReLUs, whose
    sign is split. If there are other functions, intervals of their inputs are split (Shi et al., 2024).

    Attributes:
        seconds: time limit per input. What was proved until then stands, and the outcome says that time was up.
        domains: number of leaves that are bounded at once.
        iterations: steps of Adam for each batch of leaves.
        candidates: neurons per leaf that are compared by bounding both children (De Palma et al., 2021).
        relative: (upper - radius) / upper at which an input is finished.
        eps: None to search for the radius; a number to decide this radius alone. Then `radius` is `eps` if it is
            certified; if not, `upper` is at most `eps` and `radius` any radius that was proved.

    Where the domain has no end, or none is given, the search ends at `LIMIT` times the input's size; the outcome then
    is `limited`.
    """

    seconds: Seconds = 60.0
    domains: BatchSize = 64
    iterations: PositiveInt = 20
    candidates: PositiveInt = 4
    relative: RelativeTolerance = 1e-6
    eps: PositiveFloat | None = None

    guarantee: ClassVar[Guarantee] = Guarantee.COMPLETE
    norms: ClassVar[frozenset[float]] = frozenset({1.0, 2.0, math.inf})
    one_by_one: ClassVar[bool] = True
    repeatable = False

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> NetworkState:
        """Read the network, as one of ReLUs if it is piecewise linear."""
        return self.fitting(NetworkState.of(classifier, threat, relus=is_piecewise_linear(read(classifier))))

    def cost(self, state: NetworkState) -> Cost:
        """Predict CROWN's bounds, which no limit of time interrupts, and one batch of leaves."""
        sizes = Sizes.of(state.network)
        leaves = self.domains * (CLIMB * sizes.neurons + sizes.live)
        tried = self.domains * self.candidates * (6 * sizes.neurons + sizes.live) / 2  # in float32
        return replace(relaxed(state, state.network, more=leaves + tried), seconds=self.seconds, partial=True)

    def certify(self, state: NetworkState, x: Float[Tensor, "n ..."], seeds: Sequence[int]) -> Certificate:
        """Search for one input after the other."""
        fast = state.network.to(torch.float32)
        answers = [self.one(state, fast, x[i : i + 1], seed) for i, seed in enumerate(seeds)]
        return Certificate.of(
            torch.tensor([answer.prediction for answer in answers]),
            torch.tensor([answer.radius for answer in answers], dtype=torch.float64),
            upper=torch.tensor([answer.upper for answer in answers], dtype=torch.float64),
            outcome=[answer.outcome for answer in answers],
            evidence=[answer.evidence for answer in answers],
        )

    def one(self, state: NetworkState, fast: Network, x: Float[Tensor, "1 ..."], seed: int) -> "Answer":
        """Search for one input."""
        deadline = time.perf_counter() + self.seconds
        logits, scale = state.classifier.logits_and_scale(x)
        label, slack = logits.argmax(dim=1), float(SLACK * scale)
        if not float(clean_margin(logits, label)) > slack:
            return Answer(int(label), 0.0, math.inf, Outcome.COMPLETED, NO_MARGIN)
        found = Closest(state.classifier, state.threat, x.flatten(1), int(label))
        if self.eps is None:
            guess = float(tangent(state, x, label).nan_to_num(1.0))
            found.approach(state.classifier.num_classes, guess, widest(state.threat, x)[0], seed)
        elif found.refute(state.classifier.num_classes, self.eps, seed):
            evidence = TreeEvidence(bracket=(0.0, found.distance), domains=0, splits=0, open=0, bounds="none")
            return Answer(int(label), 0.0, found.distance, Outcome.COMPLETED, evidence, found.point)
        search = Secant() if self.eps is None else Secant(limit=self.eps, evaluations=1)
        first = math.nan if self.eps is None else self.eps
        crown = float(crown_radius(state, x, label, x.new_full((1,), slack), search, first))
        if self.eps is not None and crown >= self.eps:
            evidence = TreeEvidence(bracket=(self.eps, found.distance), domains=1, splits=0, open=0, bounds="crown")
            return Answer(int(label), self.eps, found.distance, Outcome.COMPLETED, evidence)
        rows = margin_rows(label, state.classifier.num_classes)[0].to(x)
        options = TreeOptions(self.domains, self.iterations, self.candidates, self.relative, self.eps)
        tree = Tree(options, state, fast, rows, slack, float(scale), found, deadline)
        done = tree.grow()
        radius, upper = max(tree.radius, crown), found.distance  # proved, however early the search stopped
        if self.eps is not None:
            radius = min(radius, self.eps)
        if radius > upper:
            raise NumericalError(f"a radius of {radius} was bounded, but a counterexample lies at {upper}")
        evidence = TreeEvidence(
            bracket=(radius, upper), domains=tree.bounded, splits=tree.splits, open=tree.open, bounds=tree.method
        )
        outcome = Outcome.COMPLETED if done else Outcome.TIMED_OUT
        if self.eps is None and not tree.whole and tree.limit <= radius < upper:
            outcome = Outcome.LIMITED
        return Answer(int(label), radius, upper, outcome, evidence, found.point)
