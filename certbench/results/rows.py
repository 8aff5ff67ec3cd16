"""Rows, the results for one (classifier, certifier, norm, input), and estimates. Imports nothing heavy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from certbench.core.claims import ABSTAIN, Guarantee, Outcome, Subject
from certbench.core.evidence import DomainEvidence
from certbench.core.threat import Domain, Numbers, ThreatModel, threat_of

ROUNDING = 1e-9
"""Relative amount by which a radius may exceed a counterexample's distance: rounding of the distance."""


def refuted(radius: float, distance: float, norm: float) -> bool:
    """Say whether a counterexample at a distance contradicts a radius, beyond rounding of the distance.

    A ball is open. In L0, however, a radius of r allows r changes, so that a counterexample with r changes refutes it.
    """
    return radius > distance * (1 + ROUNDING) or (norm == 0 and 0 < distance <= radius)


@dataclass(frozen=True)
class Row:
    """One certificate, or the reason why there is none.

    Attributes:
        model: name of the classifier.
        certifier: the certifier's name and the options that differ from their defaults.
        spec: the certifier's name and all its options.
        guarantee: meaning of its radii.
        subject: the function that is certified.
        norm: 1, 2 or inf.
        domain: the box that inputs live in, or None for all of R^d.
        scale: scales of the coordinates, or None; radii and distances are in units of them.
        input: index of the input in its data set.
        label: the true class.
        prediction: the certified class, or `ABSTAIN`.
        radius: certified radius, in units of the input or of the scale; 0 says that nothing was proved.
        upper: distance of the closest known counterexample of the base classifier; inf if there is none.
        seconds: time for this input.
        prepare_seconds: time for the preparation that this row shares with others of its pair.
        cpu_seconds: processor time for this input; None in runs of earlier releases.
        outcome: the way in which the computation ended.
        reason: reason why there is no answer; empty if there is one.
        evidence: all that a reader needs to re-check the claim.
    """

    model: str
    certifier: str
    guarantee: Guarantee
    subject: Subject
    norm: float
    input: int
    label: int
    prediction: int
    radius: float
    outcome: Outcome
    seconds: float = 0.0
    prepare_seconds: float = 0.0
    cpu_seconds: float | None = None
    upper: float = math.inf
    domain: Domain | None = None
    scale: Numbers | None = None
    reason: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def threat(self) -> ThreatModel:
        """Norm, domain and scales."""
        return threat_of(self.norm, self.domain, self.scale)

    @property
    def correct(self) -> bool:
        """Whether the certified prediction is the true class."""
        return self.prediction != ABSTAIN and self.prediction == self.label

    @property
    def unsound(self) -> bool:
        """Whether a known counterexample refutes the radius.

        Counterexamples are for the base classifier, and say nothing about a smoothed one.
        """
        return self.subject is Subject.BASE and refuted(self.radius, self.upper, self.norm)

    @property
    def whole(self) -> bool:
        """Whether the whole domain is certified: the radius is the distance of its farthest point."""
        return DomainEvidence.read(self.evidence) is not None

    @property
    def unbounded(self) -> bool:
        """Whether the radius is no measurement: infinite, or the largest that the search tries.

        Averages leave such rows out and count them apart. Rows of earlier releases are known by their search's limit.
        """
        if math.isinf(self.radius) or self.outcome is Outcome.LIMITED:
            return True
        search = self.spec.get("search")
        return isinstance(search, Mapping) and search.get("limit") == self.radius and not self.whole

    def certified(self, eps: float) -> bool:
        """Say whether the input counts for certified accuracy at eps: correct, and radius >= eps or all certified."""
        return self.correct and (self.radius >= eps or self.whole)


@dataclass(frozen=True)
class Estimate:
    """A guess at the distance of the closest counterexample, which proves nothing; it never becomes a `Row`.

    Attributes:
        model: name of the classifier, a base classifier.
        method: the method's name and its settings.
        norm: 1, 2 or inf.
        domain: the box that inputs live in, or None for all of R^d.
        input: index of the input in its data set.
        value: the guess, in units of the input; NaN if none came out.
        cap: the largest guess that the method can make.
        upper: distance of the closest known counterexample; inf if there is none.
        scale: scales of the coordinates, or None.
    """

    model: str
    method: str
    norm: float
    domain: Domain | None
    input: int
    value: float
    cap: float
    upper: float = math.inf
    scale: Numbers | None = None

    @property
    def refuted(self) -> bool:
        """Say whether a known counterexample lies closer, beyond rounding of the distance: the estimate is no bound."""
        return self.value > self.upper * (1 + ROUNDING)
