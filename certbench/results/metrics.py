"""Metrics: summaries of a run's rows for each pair of classifier and certifier. Imports nothing heavy."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from certbench.core.claims import ABSTAIN, Guarantee, Outcome, Subject
from certbench.core.evidence import ConfidenceEvidence
from certbench.core.threat import Domain, Numbers, ThreatModel
from certbench.results.rows import Estimate, Row

Steps = list[tuple[float, float]]
"""Curve of certified accuracy: `(eps, accuracy)` at every eps where the accuracy falls, from eps = 0 on.

The accuracy of a step holds from the step before (excluded) to its eps (included); beyond the last step it is 0.
"""


@dataclass(frozen=True)
class Summary:
    """The results of one certifier for one classifier under one threat model.

    Every accuracy is over all n inputs; so is every mean and median of radii, but for those that are
    unbounded: no number stands for these, so they are counted apart. An input that failed or abstained
    counts with radius 0.

    Unless the pair is unsupported, `certified`, `uncertified`, `misclassified`, `abstained` and `failed`
    add up to n. A radius that was proved before a failure (a time limit, say) still counts for the
    accuracies, since it is valid.

    Attributes:
        norm: 1, 2 or inf.
        domain: the box that inputs live in, or None.
        scale: scales of the coordinates, or None.
        model: name of the classifier.
        certifier: name of the certifier, with the options that are not its defaults.
        subject: the function that is certified.
        guarantee: meaning of the radii.
        n: number of inputs, failed ones included.
        clean_accuracy: share where the certified function predicts the label; abstaining counts as wrong.
        certified_accuracy: `(eps, share that is correct with radius >= eps)`.
        unbounded: number of inputs whose radius is infinite, or the largest that the search tries (`Row.unbounded`).
        mean_radius: mean radius of the predicted class, right or wrong, of the other inputs; None if there are none.
        median_radius: median of the same radii.
        acr: average certified radius, the mean of radius x correct over the same inputs.
        tightness: mean of radius / upper over correct inputs with a counterexample at a distance
            that is finite and not 0; None for smoothed classifiers, and where there is no such input.
        certified: number of inputs answered correctly, with a radius above 0.
        uncertified: number of inputs answered correctly, without a certificate.
        misclassified: number of inputs answered with another class than the label.
        abstained: number of inputs for which the method could not tell the class.
        failures: number of inputs without an answer, by outcome.
        reasons: first reason for each of those outcomes.
        unsupported: reason why this certifier has no certificates for this classifier at all, or None.
        unsound: number of certificates that a known counterexample refutes.
        seconds: mean time per input, preparation not included.
        prepare_seconds: time for the preparation that the inputs share.
        alpha: largest probability with which one certificate may be wrong; 0 for sound methods, None if unknown.
    """

    norm: float
    domain: Domain | None
    scale: Numbers | None
    model: str
    certifier: str
    subject: Subject
    guarantee: Guarantee
    n: int
    clean_accuracy: float
    certified_accuracy: tuple[tuple[float, float], ...]
    unbounded: int
    mean_radius: float | None
    median_radius: float | None
    acr: float | None
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
        """Norm, domain and scales."""
        return ThreatModel(self.norm, self.domain, self.scale)

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
        """Upper bound on the expected number of wrong certificates; None if alpha is unknown.

        It is alpha times the number of answered inputs, not of certified ones: alpha bounds the chance, before
        noise is drawn, that an input is certified and wrongly so. Among the inputs that turn out certified,
        wrong ones may be more frequent. Expectations add up however failures depend on each other, so that
        this also holds for inputs that share their noise.
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
        scale: scales of the coordinates, or None.
        model: name of the classifier.
        method: name of the method, with its settings.
        n: number of inputs with an estimate.
        mean: mean of the estimates; None if there are none.
        capped: number of estimates that are the largest that the method can make.
        attacked: number of inputs with an estimate and a counterexample at a distance that is not 0.
        ratio: mean of estimate / distance over those inputs; None if there are none.
        above: number of those estimates that are above the distance, and so refuted as bounds.
    """

    norm: float
    domain: Domain | None
    scale: Numbers | None
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
        """Norm, domain and scales."""
        return ThreatModel(self.norm, self.domain, self.scale)


def summarise_estimates(estimates: Iterable[Estimate]) -> list[EstimateSummary]:
    """Make one summary per norm, domain, model and method, in the order of their first estimates."""
    groups: dict[tuple[float, Domain | None, Numbers | None, str, str], list[Estimate]] = {}
    for estimate in estimates:
        key = (estimate.norm, estimate.domain, estimate.scale, estimate.model, estimate.method)
        groups.setdefault(key, []).append(estimate)
    result = []
    for (norm, domain, scale, model, method), group in groups.items():
        known = [estimate for estimate in group if not math.isnan(estimate.value)]
        attacked = [estimate for estimate in known if 0 < estimate.upper < math.inf]
        result.append(
            EstimateSummary(
                norm=norm,
                domain=domain,
                scale=scale,
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
    """Make one summary per norm, domain, model, certifier, subject and guarantee.

    Args:
        rows: rows of a run, in any order.
        radii: for each norm, the eps at which certified accuracy is wanted.

    Returns:
        Summaries, sorted by norm, domain, model, base before smoothed, certifier; names in the order of their
        first row.
    """
    groups: dict[tuple[float, Domain | None, Numbers | None, str, str, Subject, Guarantee], list[Row]] = {}
    models: dict[str, int] = {}
    certifiers: dict[str, int] = {}
    for row in rows:
        models.setdefault(row.model, len(models))
        certifiers.setdefault(row.certifier, len(certifiers))
        key = (row.norm, row.domain, row.scale, row.model, row.certifier, row.subject, row.guarantee)
        groups.setdefault(key, []).append(row)
    summaries = [_summary(group, radii.get(group[0].norm, ())) for group in groups.values()]
    return sorted(
        summaries,
        key=lambda s: (
            s.norm,
            _ordered(s.domain),
            s.scale or (),
            models[s.model],
            s.subject is Subject.SMOOTHED,
            certifiers[s.certifier],
            s.guarantee.value,
        ),
    )


def curve(rows: Sequence[Row]) -> Steps:
    """Return certified accuracy against eps, for the rows of one pair."""
    return _steps([math.inf if row.whole else _radius(row) for row in rows if row.correct], len(rows))


def _ordered(domain: Domain | None) -> Numbers:
    """Return the ends of a domain in a row, for sorting."""
    ends = [end if isinstance(end, tuple) else (end,) for end in domain or ()]
    return tuple(number for end in ends for number in end)


def attack_curve(rows: Iterable[Row]) -> Steps:
    """Return the share of inputs that are correct and have no known counterexample closer than eps, against eps.

    No method's certified accuracy for the base classifier lies above this curve, unless one of the two is wrong.
    The rows are those of one classifier and threat model, of all certifiers together: for each input the closest
    counterexample counts. The curve is empty if no counterexample is known.
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
    bounded = [row for row in rows if not row.unbounded]
    every = [_radius(row) for row in bounded]
    return Summary(
        norm=first.norm,
        domain=first.domain,
        scale=first.scale,
        model=first.model,
        certifier=first.certifier,
        subject=first.subject,
        guarantee=first.guarantee,
        n=n,
        clean_accuracy=sum(row.correct for row in rows) / n,
        certified_accuracy=tuple((eps, sum(row.certified(eps) for row in rows) / n) for eps in radii),
        unbounded=n - len(bounded),
        mean_radius=_mean(every),
        median_radius=statistics.median(every) if every else None,
        acr=_mean([radius if row.correct else 0.0 for row, radius in zip(bounded, every, strict=True)]),
        tightness=_tightness(bounded),
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
    """Return the radius, and 0 for NaN, which proves nothing."""
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
