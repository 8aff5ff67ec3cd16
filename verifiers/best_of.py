"""The best of several certificates of one classifier: the largest of sound radii is sound.

Members run in the order in which they are given, cheap ones first. A member that bounds margins is asked once whether
it proves more than the best radius so far, and only then searches for its own radius. A member that closes the gap to a
counterexample ends the search.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from certbench.core import options
from certbench.core.certificate import Certificate
from certbench.core.certifier import Certifier, MarginCertifier
from certbench.core.claims import Guarantee, Outcome, Subject
from certbench.core.classifier import Classifier
from certbench.core.evidence import BestOfEvidence
from certbench.core.margins import FLOOR, SLACK
from certbench.core.memory import Cost
from certbench.core.ranges import between
from certbench.core.threat import ThreatModel
from certbench.errors import CertificationError, ConfigError, NumericalError, UnsupportedError
from certbench.verifiers.linear.crown import Crown
from certbench.verifiers.lipschitz.jacobian_zonotope import JacobianZonotope
from certbench.verifiers.lipschitz.margin import LayerwiseLipschitz


@dataclass(frozen=True, eq=False)
class BestOfState:
    """The states that the members prepared.

    Attributes:
        classifier: the classifier, in float64.
        threat: the threat model of the states.
        states: state of each member, None where it refused.
        refused: the reason of each member that refused, by name.
    """

    classifier: Classifier
    threat: ThreatModel
    states: tuple[Any, ...]
    refused: dict[str, str]


@dataclass(frozen=True)
class BestOf(Certifier[BestOfState]):
    """The best of several certificates of the base classifier, cheap ones first, each only where it can still win.

    Attributes:
        of: the certifiers, in the order in which they are asked. One that cannot bound a classifier is left out,
            and the certificates say so.
        relative: share by which a radius has to exceed the best one so far for a search to be worth it.
    """

    of: tuple[Certifier[Any], ...] = field(
        default_factory=lambda: (LayerwiseLipschitz(), JacobianZonotope(refine=True), Crown())
    )
    relative: Annotated[float, between(0, 1, "left")] = 1e-3

    guarantee: ClassVar[Guarantee] = Guarantee.SOUND
    norms: ClassVar[frozenset[float]] = frozenset({1.0, 2.0, torch.inf})

    @property
    def members(self) -> tuple[Certifier[Any], ...]:
        """The certifiers `of`: the best certificate is one of theirs."""
        return self.of

    def dominates(self, other: Certifier[Any]) -> str | None:
        """Return the theorem: the best is at least the first member, and each member that bounds no margins.

        Proof. The first member is asked for every input, and a certificate is replaced by a larger one alone. A member
        that bounds no margins is asked wherever no counterexample lies within (1 + `relative`) of the best radius so
        far, and no radius reaches beyond a counterexample. Both answers of the member are the same if it is repeatable.
        For other members there is no theorem. They are run only if they prove a little more than the best radius so far
        at that very ball, and bounds of margins need not fall as the ball grows.
        """
        asked = other in self.of and (other == self.of[0] or not isinstance(other, MarginCertifier))
        return "the best of several is at least each" if asked and other.repeatable else None

    def attainable(self, radius: float, evidence: Mapping[str, Any]) -> float:
        """Return the radius with the slack that `relative` leaves; infinity where a member failed."""
        found = BestOfEvidence.read(evidence)
        return math.inf if found and found.refused else radius * (1 + self.relative)

    def check_together(self) -> None:
        """Refuse certificates of different functions: none of them is the best."""
        if not self.of:
            raise ConfigError("name at least one certifier", ("of",))
        for i, member in enumerate(self.of):
            if member.subject is not Subject.BASE or member.guarantee is not Guarantee.SOUND:
                raise ConfigError(
                    f"{options.label(member)} makes no sound statement about the base classifier", ("of", i)
                )
        if len({member.rounding_safe for member in self.of}) > 1:
            raise ConfigError("some claims are about the float program (rounding_safe), others are not", ("of",))

    def unsupported(self, classifier: Classifier, threat: ThreatModel) -> str | None:
        """Return the reason of a norm that is not offered, or the reasons of all members if every member refuses."""
        reason = Certifier.unsupported(self, classifier, threat)
        if reason is not None:
            return reason
        reasons = [member.unsupported(classifier, threat) for member in self.of]
        return None if None in reasons else "; ".join(str(reason) for reason in reasons)

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> BestOfState:
        """Prepare every member.

        Raises:
            UnsupportedError: all of them refuse.
        """
        states, refused = [], {}
        for member in self.of:
            state, reason = None, member.unsupported(classifier, threat)
            if reason is None:
                try:
                    state = member.prepare(classifier, threat)
                except (UnsupportedError, CertificationError) as error:
                    reason = str(error)
            states.append(state)
            if reason is not None:
                refused[options.label(member)] = reason
        if len(refused) == len(self.of):
            raise UnsupportedError("; ".join(f"{name}: {reason}" for name, reason in refused.items()))
        return BestOfState(classifier.double(), threat, tuple(states), refused)

    def cost(self, state: BestOfState) -> Cost:
        """Predict the memory of the member that needs most; each has checked its own time."""
        pairs = zip(self.of, state.states, strict=True)
        costs = [cost for one, prepared in pairs if prepared is not None and (cost := one.cost(prepared))]
        return Cost(
            fixed=max((cost.fixed for cost in costs), default=0.0),
            each=max((cost.each for cost in costs), default=0.0),
            device=state.classifier.device,
            partial=True,
        )

    def certify(self, state: BestOfState, x: Float[Tensor, "n ..."], seeds: Sequence[int]) -> Certificate:
        """Certify with each member, where it can exceed those before it; `won` in the evidence names the best one."""
        best: Certificate | None = None
        refused, failure = dict(state.refused), None
        for member, prepared in zip(self.of, state.states, strict=True):
            if prepared is None:
                continue
            try:
                if best is None:
                    index = torch.arange(len(x))
                else:
                    index = self._open(best).nonzero().squeeze(1)
                    index = index[self._can_win(member, prepared, x[index], best.radius[index])]
                if best is not None and len(index) == 0:
                    continue
                found = member.certify(prepared, x[index], [seeds[i] for i in index.tolist()])
            except CertificationError as error:  # what the others prove stands
                refused[options.label(member)], failure = str(error), error
                continue
            name = BestOfEvidence(won=options.label(member)).to_json()
            evidence = tuple({**name, **row} for row in found.evidence)
            best = _merged(best, replace(found, evidence=evidence), index.tolist())
        if best is None:
            raise failure or NumericalError("no member gave a certificate")
        if not refused:
            return best
        reasons = BestOfEvidence(refused=refused).to_json()
        return replace(best, evidence=tuple({**row, **reasons} for row in best.evidence))

    def _open(self, best: Certificate) -> Bool[Tensor, " n"]:
        """Say where a counterexample leaves room for more."""
        return best.upper > best.radius * (1 + self.relative)

    def _can_win(
        self, member: Certifier[Any], prepared: Any, x: Float[Tensor, "n ..."], radius: Float[Tensor, " n"]
    ) -> Bool[Tensor, " n"]:
        """Say whether a member proves more than `radius`; True for members that have to be run to tell."""
        if not isinstance(member, MarginCertifier) or len(x) == 0:
            return torch.ones(len(x), dtype=torch.bool)
        logits, scale = prepared.classifier.logits_and_scale(x)
        label: Int[Tensor, " n"] = logits.argmax(dim=1)
        goal = radius.to(x) * (1 + self.relative)
        bounds = member.margins(prepared, x, label, goal.clamp(min=1e-6))
        floor = (SLACK * scale).clamp(min=FLOOR)[:, None].expand_as(bounds.lower)
        proved = (bounds.lower > floor).all(dim=1)
        further = bounds.crossing(prepared.threat, x.flatten(1), floor) > goal
        wins: Tensor = (proved | further).cpu()
        return wins


def _merged(best: Certificate | None, found: Certificate, index: list[int]) -> Certificate:
    """Return the better certificate of each input; `found` is about the inputs at `index`."""
    if best is None:
        return found
    prediction, radius, upper = best.prediction.clone(), best.radius.clone(), best.upper.clone()
    outcome, evidence = list(best.outcome), list(best.evidence)
    for row, i in enumerate(index):
        upper[i] = torch.minimum(upper[i], found.upper[row])
        if found.radius[row] > 0 and radius[i] > 0 and found.prediction[row] != prediction[i]:
            raise NumericalError(
                f"members certify different classes: {int(prediction[i])}, {int(found.prediction[row])}"
            )
        better = found.radius[row] > radius[i] or outcome[i] not in (Outcome.COMPLETED, Outcome.LIMITED)
        if better and found.radius[row] >= radius[i]:
            prediction[i], radius[i] = found.prediction[row], found.radius[row]
            outcome[i], evidence[i] = found.outcome[row], found.evidence[row]
    return Certificate(prediction, radius, upper, best.seconds, tuple(outcome), tuple(evidence))
