r"""Exact distances to the decision boundary by mixed-integer programs (Tjeng et al., 2019).

With bounds l < 0 < u a ReLU is $h \geq 0$, $h \geq z$, $h \leq z - l (1 - a)$, $h \leq u a$ with a binary a. The
programs minimise $\|\delta\|_p$ over the perturbations for which another class reaches the predicted one, class by
class, inside the ball of the nearest counterexample known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.core.certificate import Certificate
from certbench.core.certifier import Certifier
from certbench.core.claims import Guarantee, Outcome
from certbench.core.classifier import Classifier
from certbench.core.evidence import Evidence
from certbench.core.margins import NO_MARGIN, SLACK, clean_margin, margin_rows
from certbench.core.memory import Cost
from certbench.core.ranges import PositiveFloat, Seconds, between
from certbench.core.search import Secant
from certbench.core.threat import ThreatModel
from certbench.verifiers.bounds.costs import relaxed
from certbench.verifiers.bounds.programs import NONZERO, highs, nonzeros
from certbench.verifiers.bounds.state import NetworkState, crown_radius
from certbench.verifiers.complete.milp_search import WIDEN, Bracket


@dataclass(frozen=True)
class MILP(Certifier[NetworkState]):
    """Mixed-integer programs with HiGHS: the exact radius, or a bracket around it (Tjeng et al., 2019).

    Claims concern the real-arithmetic network, up to the solver's tolerances. The radius is the least dual bound over
    the classes, never a primal value, and never below CROWN's radius. It is lowered in two ways, which are judgements,
    no proof. First, the other class need not reach the predicted one. It may miss it by `SLACK`, and by as much as a
    violation of every row by `FEASIBILITY`, carried through the moduli of the weights, can move a margin. Second, the
    share `WIDEN` of the distance is given away, with what such violations can add to a norm. That a class has no point
    in the ball is the solver's word, with the same allowances.

    `upper` is the distance of a point that the classifier misclassifies in float64. If the bracket does not close to
    `tolerance`, the outcome says why. The radius is still valid; it is CROWN's if the solver contradicts a point.

    Attributes:
        eps: None for the exact radius; a number to decide this radius alone. If it fails, the radius is CROWN's.
        seconds: time limit per input.
        tolerance: (upper - radius) / upper at which an input is finished.
        tighten: whether LPs sharpen CROWN's intermediate bounds first: fewer binaries, more time.
    """

    eps: PositiveFloat | None = None
    seconds: Seconds = 60.0
    tolerance: Annotated[float, between(10 * WIDEN, 1, "left")] = 1e-4
    tighten: bool = False

    guarantee: ClassVar[Guarantee] = Guarantee.COMPLETE
    norms: ClassVar[frozenset[float]] = frozenset({1.0, math.inf})
    one_by_one: ClassVar[bool] = True
    repeatable = False

    def unsupported(self, classifier: Classifier, threat: ThreatModel) -> str | None:
        """Refuse L2, which needs mixed-integer quadratic programs."""
        del classifier
        if threat.p in self.norms:
            return None
        offered = ", ".join(f"L{p:g}" for p in sorted(self.norms))
        return f"{threat.name} is not offered, only {offered}: HiGHS solves no mixed-integer quadratic programs"

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> NetworkState:
        """Read the network.

        Raises:
            UnsupportedError: it is no ReLU network; the message names the layer.
            MissingBackendError: highspy is missing.
        """
        highs()
        return self.fitting(NetworkState.of(classifier, threat))

    def cost(self, state: NetworkState) -> Cost:
        """Predict CROWN's bounds, which no limit of time interrupts, and the program of one input."""
        found = relaxed(state, state.network)
        return replace(found, fixed=found.fixed + NONZERO * nonzeros(state.network), seconds=self.seconds, partial=True)

    def certify(self, state: NetworkState, x: Float[Tensor, "n ..."], seeds: Sequence[int]) -> Certificate:
        """Solve for one input after the other."""
        del seeds
        logits, scale = state.classifier.logits_and_scale(x)
        label, slack = logits.argmax(dim=1), SLACK * scale
        radius, upper = torch.zeros(len(x), dtype=torch.float64), torch.full((len(x),), math.inf, dtype=torch.float64)
        outcomes, evidence = [Outcome.COMPLETED] * len(x), list[Evidence]([NO_MARGIN] * len(x))
        for i in range(len(x)):
            if not clean_margin(logits[i : i + 1], label[i : i + 1]) > slack[i]:
                continue
            alone = x[i : i + 1], label[i : i + 1], slack[i : i + 1]
            if self.eps is None:
                crown = crown_radius(state, *alone, Secant()).item()
            else:
                crown = crown_radius(state, *alone, Secant(limit=self.eps, evaluations=1), self.eps).item()
            rows = margin_rows(label[i : i + 1], state.classifier.num_classes).to(x)
            hunt = Bracket(
                self.eps, self.seconds, self.tolerance, self.tighten, state, x[i : i + 1], rows, slack[i].item(), crown
            )
            outcomes[i], evidence[i] = hunt.run()
            radius[i], upper[i] = hunt.radius, hunt.upper
        return Certificate.of(label, radius, upper=upper, outcome=outcomes, evidence=evidence)
