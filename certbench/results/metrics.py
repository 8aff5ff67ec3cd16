"""Metrics: what the rows of a run say about each pair of classifier and certifier. Imports nothing heavy."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from certbench.core.claims import ABSTAIN, Guarantee, Outcome, Subject
from certbench.core.evidence import ConfidenceEvidence
from certbench.core.threat import ThreatModel
from certbench.results.rows import Estimate, Row

Steps = list[tuple[float, float]]
"""A certified-accuracy curve: `(eps, accuracy)` at every eps where it falls, from eps = 0 on.

The accuracy of a step holds from the step before (excluded) to its eps (included); beyond the last step it is 0.
"""


@dataclass(frozen=True)
class Summary:
    """What one certifier proved about one classifier under one threat model.

    Every mean, median and accuracy is over all n inputs: an input that failed or abstained stands
    there with radius 0. An infinite radius (a classifier that is constant) makes means infinite.

    Unless the pair is unsupported, `certified`, `uncertified`, `misclassified`, `abstained` and `failed`
    add up to n. A radius that was proved before a failure (a time limit, say) still counts for the
    accuracies, since it is valid.

    Attributes:
        norm: 1, 2 or inf.
        domain: the box that inputs live in, or None.
        model: name of the classifier.
        certifier: name of the certifier, with the options that are not its defaults.
        subject: which function is certified.
        guarantee: what its radii mean.
        n: number of inputs, failed ones included.
        clean_accuracy: share where the certified function predicts the label; to abstain is to be wrong.
        certified_accuracy: `(eps, share that is correct with radius >= eps)`.
        mean_radius: of the predicted class, right or wrong.
        median_radius: likewise.
        acr: average certified radius, the mean of radius x correct.
        tightness: mean of radius / upper over correct inputs with a counterexample at a distance
            that is finite and not 0; None for smoothed classifiers, and where there is no such input.
        certified: answered and correct, with a radius above 0.
        uncertified: answered and correct, but nothing was proved.
        misclassified: answered with another class than the label.
        abstained: the method could not tell the class.
        failures: inputs without an answer, by outcome.
        reasons: for each of those outcomes, the first reason met.
        unsupported: why this certifier has no certificates for this classifier at all, or None.
        unsound: certificates that a known counterexample refutes.
        seconds: mean per input, preparation not included.
        prepare_seconds: for the preparation that the inputs share.
        alpha: largest probability with which one certificate may be wrong; 0 for sound methods, None if unknown.
    """

    norm: float
    domain: tuple[float, float] | None
    model: str
    certifier: str
    subject: Subject
    guarantee: Guarantee
    n: int
    clean_accuracy: float
    certified_accuracy: tuple[tuple[float, float], ...]
    mean_radius: float
    median_radius: float
    acr: float
    tightness: float | None
    certified: int
    uncertified: int
    misclassified: int
    abstained: int
    failures: Mapping[Outcome, int]
    reasons: Mapping[Outcome, str]
    unsupported: str | None
    unsound: int
    seconds: float
    prepare_seconds: float
    alpha: float | None

    @property
    def threat(self) -> ThreatModel:
        """Norm and domain."""
        return ThreatModel(self.norm, self.domain)

    @property
    def failed(self) -> int:
        """Number of inputs that ended without an answer."""
        return sum(self.failures.values())

    @property
    def answered(self) -> int:
        """Number of inputs on which the method came to its own end."""
        return self.certified + self.uncertified + self.misclassified + self.abstained

    @property
    def expected_wrong(self) -> float | None:
        """Expected number of wrong certificates, at most; None if alpha is unknown.

        alpha times the inputs that were answered. It is not alpha times those that were certified:
        alpha bounds the chance that an input is certified and wrongly so, before its noise is drawn,
        and among the inputs that came out certified wrong ones may be more frequent. Expectations add up
        however failures depend on each other, so this holds for inputs that share their noise too.
        """
        if self.answered == 0:
            return 0.0
        return None if self.alpha is None else self.alpha * self.answered


@dataclass(frozen=True)
class EstimateSummary:
    """Estimates of one method for one classifier under one threat model; they prove nothing.

    Attributes:
        norm: 1, 2 or inf.
        domain: the box that inputs live in, or None.
        model: name of the classifier.
        method: name of the method, with its settings.
        n: number of inputs with an estimate.
        mean: of the estimates; None where there is none.
        capped: how many are the largest that the method can make.
        attacked: inputs with an estimate and a counterexample at a distance that is not 0.
        ratio: mean of estimate / distance over those; None where there is none.
        above: how many of those estimates are above the distance, and so refuted as bounds.
    """

    norm: float
    domain: tuple[float, float] | None
    model: str
    method: str
    n: int
    mean: float | None
    capped: int
    attacked: int
    ratio: float | None
    above: int

    @property
    def threat(self) -> ThreatModel:
        """Norm and domain."""
        return ThreatModel(self.norm, self.domain)


def summarise_estimates(estimates: Iterable[Estimate]) -> list[EstimateSummary]:
    """One summary per norm, domain, model and method, in the order of their first estimates."""
    groups: dict[tuple[float, tuple[float, float] | None, str, str], list[Estimate]] = {}
    for estimate in estimates:
        key = (estimate.norm, estimate.domain, estimate.model, estimate.method)
        groups.setdefault(key, []).append(estimate)
    result = []
    for (norm, domain, model, method), group in groups.items():
        known = [estimate for estimate in group if not math.isnan(estimate.value)]
        attacked = [estimate for estimate in known if 0 < estimate.upper < math.inf]
        result.append(
            EstimateSummary(
                norm=norm,
                domain=domain,
                model=model,
                method=method,
                n=len(known),
                mean=_mean([estimate.value for estimate in known]),
                capped=sum(estimate.value >= estimate.cap for estimate in known),
                attacked=len(attacked),
                ratio=_mean([estimate.value / estimate.upper for estimate in attacked]),
                above=sum(estimate.refuted for estimate in attacked),
            )
        )
    return result


def summarise(rows: Iterable[Row], radii: Mapping[float, Sequence[float]]) -> list[Summary]:
    """One summary per norm, domain, model, certifier, subject and guarantee.

    Args:
        rows: of a run, in any order.
        radii: for each norm, the eps at which certified accuracy is wanted.

    Returns:
        Summaries by norm, domain, model, base before smoothed, certifier; names stand in the order of
        their first row.
    """
    groups: dict[tuple[float, tuple[float, float] | None, str, str, Subject, Guarantee], list[Row]] = {}
    models: dict[str, int] = {}
    certifiers: dict[str, int] = {}
    for row in rows:
        models.setdefault(row.model, len(models))
        certifiers.setdefault(row.certifier, len(certifiers))
        key = (row.norm, row.domain, row.model, row.certifier, row.subject, row.guarantee)
        groups.setdefault(key, []).append(row)
    summaries = [_summary(group, radii.get(group[0].norm, ())) for group in groups.values()]
    return sorted(
        summaries,
        key=lambda s: (
            s.norm,
            s.domain or (),
            models[s.model],
            s.subject is Subject.SMOOTHED,
            certifiers[s.certifier],
            s.guarantee.value,
        ),
    )


def curve(rows: Sequence[Row]) -> Steps:
    """Certified accuracy against eps, for the rows of one pair."""
    return _steps([_radius(row) for row in rows if row.correct], len(rows))


def attack_curve(rows: Iterable[Row]) -> Steps:
    """Share of inputs that are correct and have no counterexample known closer than eps.

    Certified accuracy of the base classifier cannot lie above it, whatever the method, unless one of the
    two is wrong. Rows of one classifier and threat model, all certifiers together: for each input the
    closest counterexample counts. Empty if no counterexample is known.
    """
    closest: dict[int, float] = {}
    correct: set[int] = set()
    for row in rows:
        if row.subject is Subject.BASE:
            closest[row.input] = min(row.upper, closest.get(row.input, math.inf))
            if row.correct:
                correct.add(row.input)
    if all(math.isinf(upper) for upper in closest.values()):
        return []
    return _steps([closest[i] for i in correct], len(closest))


def _steps(distances: Iterable[float], n: int) -> Steps:
    ordered = sorted(distances)
    steps = [(0.0, len(ordered) / n)] if n else []
    for i, distance in enumerate(ordered):
        if distance > steps[-1][0]:
            steps.append((distance, (len(ordered) - i) / n))
    return steps


def _summary(rows: Sequence[Row], radii: Sequence[float]) -> Summary:
    first, n = rows[0], len(rows)
    answered = [row for row in rows if row.outcome.answered and row.prediction != ABSTAIN]
    correct = [row for row in answered if row.correct]
    certified = [row for row in correct if row.radius > 0]
    never = all(row.outcome is Outcome.UNSUPPORTED for row in rows)
    missing = [] if never else [row for row in rows if not row.outcome.answered]
    outcomes = list(dict.fromkeys(row.outcome for row in missing))
    every = [_radius(row) for row in rows]
    return Summary(
        norm=first.norm,
        domain=first.domain,
        model=first.model,
        certifier=first.certifier,
        subject=first.subject,
        guarantee=first.guarantee,
        n=n,
        clean_accuracy=sum(row.correct for row in rows) / n,
        certified_accuracy=tuple((eps, sum(row.certified(eps) for row in rows) / n) for eps in radii),
        mean_radius=math.fsum(every) / n,
        median_radius=statistics.median(every),
        acr=math.fsum(radius for row, radius in zip(rows, every, strict=True) if row.correct) / n,
        tightness=_tightness(rows),
        certified=len(certified),
        uncertified=len(correct) - len(certified),
        misclassified=len(answered) - len(correct),
        abstained=sum(row.outcome.answered and row.prediction == ABSTAIN for row in rows),
        failures={outcome: sum(row.outcome is outcome for row in missing) for outcome in outcomes},
        reasons={
            outcome: next((row.reason for row in missing if row.outcome is outcome and row.reason), "")
            for outcome in outcomes
        },
        unsupported=(next((row.reason for row in rows if row.reason), "") or "no reason given") if never else None,
        unsound=sum(row.unsound for row in rows),
        seconds=math.fsum(row.seconds for row in rows) / n,
        prepare_seconds=max(row.prepare_seconds for row in rows),
        alpha=_alpha(rows),
    )


def _radius(row: Row) -> float:
    """The radius; NaN proves nothing."""
    return row.radius if row.radius > 0 else 0.0


def _tightness(rows: Iterable[Row]) -> float | None:
    ratios = [
        _radius(row) / row.upper
        for row in rows
        if row.subject is Subject.BASE and row.correct and 0 < row.upper < math.inf
    ]
    return _mean(ratios)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _alpha(rows: Sequence[Row]) -> float | None:
    if rows[0].guarantee is not Guarantee.PROBABILISTIC:
        return 0.0
    found = [ConfidenceEvidence.from_json(row.evidence).alpha for row in rows]
    said = [row.spec.get("alpha") if alpha is None else alpha for row, alpha in zip(rows, found, strict=True)]
    return max((float(alpha) for alpha in said if alpha is not None), default=None)
