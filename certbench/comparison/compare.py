"""The comparison of two runs, row by row: lost, gained, looser, tighter, wrong and other rows. Imports nothing heavy.

The radii of smoothing are random, so its rows are compared by their counts: Fisher's exact test, and Holm's correction
over all tested rows. With a new seed and 200 inputs, "a radius fell by 5 %" is true in every run; a significant
difference of counts is not. The radius of the new row is also compared with the one that its own counts prove.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from certbench.comparison import baseline
from certbench.comparison.classes import WRONG, Kind, Tolerance, classify
from certbench.comparison.policy import Policy, Rule, Terms, load
from certbench.comparison.side import Known, Place, Side, merge, place_of, spec_text
from certbench.core.claims import ABSTAIN, Guarantee, Outcome, Subject
from certbench.core.evidence import BracketEvidence
from certbench.errors import ConfigError
from certbench.exit_codes import ExitCode
from certbench.results import recheck_counts
from certbench.results.rows import Row, refuted
from certbench.results.significance import counted, holm, p_value, same_draws, strongest

EXACT_SLACK = 1e-6
"""Relative error that is allowed to a complete certifier's answer, which depends on a solver's tolerances."""

SHORT = Tolerance(1e-9, 1e-6)
"""Rounding allowance by which a radius may be smaller than its own counts prove."""


@dataclass(frozen=True)
class Change:
    """The change of one row.

    Attributes:
        kind: class of the change.
        old: the row as it was, None if there was none.
        new: the row as it is, None if there is none.
        detail: what a reader needs to know beside the radii.
        p: p-value of the test on counts, before correction; None if nothing was tested.
    """

    kind: Kind
    old: Row | None
    new: Row | None
    detail: str = ""
    p: float | None = None

    @property
    def row(self) -> Row:
        """The new row, or the old one if there is no new one."""
        row = self.new or self.old
        assert row is not None
        return row

    @property
    def size(self) -> float:
        """Relative change of the radius, signed; infinite if the old radius is zero or infinite, or one is NaN."""
        if self.old is None or self.new is None or self.old.radius == self.new.radius:
            return 0.0
        change = self.new.radius - self.old.radius
        if math.isnan(change):
            return math.inf
        return change / self.old.radius if 0 < self.old.radius < math.inf else math.copysign(math.inf, change)


@dataclass(frozen=True)
class Comparison:
    """All changes, and what the policy says about them.

    Attributes:
        old: the old side.
        new: the new side.
        policy: rules that say which changes fail.
        changes: changes in the order of the new side, then missing rows; without known issues.
        known: changes that a file of known issues names, each with its reason.
        notes: further notes for a reader.
    """

    old: Side
    new: Side
    policy: Policy
    changes: Sequence[Change]
    known: Sequence[tuple[Change, str]] = ()
    notes: Sequence[str] = ()

    def terms(self, change: Change) -> Terms:
        """Return the policy's terms for the certifier of a change."""
        return self.policy.of(*_names(change.row))

    @cached_property
    def counted(self) -> Mapping[tuple[str, Kind], list[Change]]:
        """The changes that the policy counts, by its pattern and by class."""
        found: dict[tuple[str, Kind], list[Change]] = {}
        for change in self.changes:
            terms = self.terms(change)
            rule = terms.rules[change.kind]
            # Counts may fall while the radius stays 0: this change has size 0, and the policy counts it.
            if rule.action != "ignore" and (change.size == 0 or abs(change.size) > rule.more_than):
                found.setdefault((terms.pattern, change.kind), []).append(change)
        return found

    def over(self, action: str) -> Iterator[tuple[str, Kind, Rule, list[Change]]]:
        """Yield the patterns and classes that have more rows than the policy allows, and bring this action."""
        by_pattern = {terms.pattern: terms for terms in (self.policy.rest, *self.policy.patterns)}
        for (pattern, kind), changes in self.counted.items():
            rule = by_pattern[pattern].rules[kind]
            if rule.action == action and len(changes) > rule.at_most:
                yield pattern, kind, rule, changes

    @property
    def unused(self) -> dict[str, bool]:
        """Patterns of the policy that decide about no certifier; True if an earlier pattern takes all that they fit."""
        names = {_names(change.row) for change in (*self.changes, *(change for change, _ in self.known))}
        met = {self.policy.of(*pair).pattern for pair in names}
        unmet = [terms for terms in self.policy.patterns if terms.pattern not in met]
        return {terms.pattern: any(terms.fits(*pair) for pair in names) for terms in unmet}

    @property
    def slower(self) -> list[tuple[str, float]]:
        """Benchmarks whose median grew by more than the policy allows, with the ratio."""
        old, new = self.old.medians, self.new.medians
        ratios = [(name, new[name] / old[name]) for name in old if name in new and old[name] > 0]
        return [(name, ratio) for name, ratio in ratios if ratio > self.policy.slower]

    @property
    def foreign(self) -> bool:
        """Whether the timings come from two machines, so that they cannot be compared."""
        return bool(self.old.medians and self.new.medians) and self.old.machine != self.new.machine

    @property
    def exit_code(self) -> ExitCode:
        """Exit code of the command: that of the gravest problem."""
        failing = {kind for _, kind, _, _ in self.over("fail")}
        if failing & WRONG:
            return ExitCode.UNSOUND
        if Kind.INCOMPARABLE in failing or self.foreign:
            return ExitCode.INCOMPARABLE
        if self.new.uncomputed:
            return ExitCode.INCOMPLETE
        return ExitCode.VIOLATED if failing or self.slower else ExitCode.OK


def compare(
    old: Path | str | Side,
    new: Path | str | Side,
    policy: Path | str | Policy | None = None,
    *,
    known: Path | str | None = None,
) -> Comparison:
    """Say row by row what was lost or gained, and what became looser, tighter or wrong; see `Kind`.

    A row gets the first class that fits: it is wrong; one side lacks it; the sides are about different models, data or
    claims; its radius changed.

    Args:
        old: the folder of a run, a baseline, or a JSON file of pytest-benchmark; or a side that was read.
        new: one of the same, to be held against the old side.
        policy: rules that say which differences fail, a YAML file or a policy that was read; None: the defaults of
            `certbench.comparison.policy`.
        known: a YAML file of known issues, which do not fail; see `certbench.results.known_issues`.

    Returns:
        The changes, and what the policy says about them; `Comparison.exit_code` is 0 if nothing fails. Radii and
        distances are in units of the input.

    Raises:
        ConfigError: a file is not of the right kind, or a side has no rows.
        StoreError: a run cannot be read.
    """
    rules = policy if isinstance(policy, Policy) else Policy() if policy is None else load(Path(policy))
    before, after = (side if isinstance(side, Side) else baseline.read(Path(side)) for side in (old, new))
    for side, given in ((before, old), (after, new)):
        if not isinstance(given, Side) and not side.rows and not side.medians:
            raise ConfigError(f"{side.name} holds no rows, so that there is nothing to compare")
    comparison = _compared(before, after, rules)
    return comparison if known is None else _excuse(comparison, Path(known))


def _excuse(comparison: Comparison, path: Path) -> Comparison:
    """Return the comparison without known issues, with notes about entries that match nothing."""
    from certbench.results import known_issues

    issues = known_issues.load(path)
    entries = [(change, issues.of(change.row, change.kind.value)) for change in comparison.changes]
    kinds = {kind.value for kind in Kind}
    used = {entry for _, entry in entries if entry is not None}
    notes = []
    for entry in issues.entries:
        meant = any(
            entry.concerns(row.certifier, str(row.spec.get("name", row.certifier)), row.model, row.norm, row.input)
            for row in (change.row for change in comparison.changes)
        )
        if not meant:
            notes.append(f"note: known issue that matches no row: {entry}")
        elif entry.kind in kinds and entry not in used:
            notes.append(f"note: known issue that is none any more: {entry}")
    return replace(
        comparison,
        changes=[change for change, entry in entries if entry is None],
        known=[(change, entry.reason) for change, entry in entries if entry is not None],
        notes=notes,
    )


def _compared(old: Side, new: Side, policy: Policy) -> Comparison:
    olds, news = _matched(old.rows, new.rows)
    mismatch = {name: old.mismatch(new, name) for name in {row.model for row in (*old.rows, *new.rows)}}
    known = merge(distances(new.rows), new.known)
    earlier = merge(distances(old.rows), old.known)
    known = merge(known, {place: found for place, found in earlier.items() if mismatch.get(place[0]) == ""})

    pairs = [(key, olds.get(key), row) for key, row in news.items()]
    tests = {key: p for key, o, n in pairs if o and not mismatch[n.model] and (p := p_value(o, n)) is not None}
    significant = dict(zip(tests, holm(list(tests.values()), policy.significance), strict=True))
    changes = []
    for key, o, n in pairs:
        tolerance = policy.of(*_names(n)).tolerance
        found = wrong(n, known, o)
        if found is None and o is None:
            found = Kind.NEW, ""
        elif found is None and o is not None:
            found = (Kind.INCOMPARABLE, mismatch[n.model]) if mismatch[n.model] else _meaning(o, n)
            found = found or (_statistical(o, n, significant[key]) if key in tests else _exact(o, n, tolerance))
        assert found is not None
        changes.append(Change(found[0], o, n, found[1], tests.get(key)))
    changes += [Change(Kind.MISSING, row, None) for key, row in olds.items() if key not in news]
    return Comparison(old, new, policy, changes)


def distances(rows: Iterable[Row]) -> dict[Place, Known]:
    """Return the distances known from rows of base classifiers: counterexamples, and answers of complete certifiers."""
    found: dict[Place, Known] = {}
    for row in rows:
        if row.subject is Subject.BASE:
            here = (Known(row.upper, "counterexample"), Known(_exact_radius(row), f"{row.certifier}, complete"))
            nearest = min(*here, found.get(place_of(row), here[0]), key=lambda known: known.distance)
            if nearest.distance < math.inf:
                found[place_of(row)] = nearest
    return found


def _exact_radius(row: Row) -> float:
    """Bound the exact radius from above, by the answer of a complete certifier that finished; else infinity.

    That is the upper end of its bracket, if it has one.
    """
    if row.guarantee is not Guarantee.COMPLETE or row.outcome is not Outcome.COMPLETED or not row.radius > 0:
        return math.inf
    found = BracketEvidence.read(row.evidence)
    if found is not None:
        return found.bracket[1] * (1 + EXACT_SLACK)
    unknown = "search" in row.spec or BracketEvidence.stated(row.evidence.keys())
    return math.inf if unknown else row.radius * (1 + EXACT_SLACK)


def _names(row: Row) -> tuple[str, str]:
    """Return the certifier's label, and its name alone."""
    return row.certifier, str(row.spec.get("name", row.certifier))


def _matched(old: Sequence[Row], new: Sequence[Row]) -> tuple[dict[Any, Row], dict[Any, Row]]:
    """Return both sides' rows by identity.

    A certifier with a new option is still the old one if its other options fit exactly one old certifier.
    """
    texts = [[spec_text(row) for row in rows] for rows in (old, new)]
    specs = [{text: row.spec for text, row in zip(*pair, strict=True)} for pair in zip(texts, (old, new), strict=True)]
    names: dict[str, str] = {}
    for text in specs[1].keys() - specs[0].keys():
        fits = [other for other in specs[0].keys() - specs[1].keys() if _fits(specs[0][other], specs[1][text])]
        if len(fits) == 1:
            names[text] = fits[0]
    if len(set(names.values())) < len(names):  # one of them is the old one, but it is unknown which
        names = {text: other for text, other in names.items() if [*names.values()].count(other) == 1}
    olds = {(text, *place_of(row)): row for text, row in zip(texts[0], old, strict=True)}
    return olds, {(names.get(text, text), *place_of(row)): row for text, row in zip(texts[1], new, strict=True)}


def _fits(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    common = old.keys() & new.keys()
    return "name" in common and all(old[key] == new[key] for key in common)


def wrong(new: Row, known: Mapping[Place, Known], old: Row | None = None) -> tuple[Kind, str] | None:
    """Return the class and the reason if a row is wrong, whatever it was before.

    Args:
        new: the row.
        known: known distances, by place.
        old: the row as it was; a radius that was infinite may stay so.
    """
    radius = new.radius
    if math.isnan(radius) or radius < 0 or (radius == math.inf and old is not None and old.radius != math.inf):
        return Kind.NON_FINITE, f"the radius is {radius:g}"
    if new.prediction == ABSTAIN and radius > 0:
        return Kind.UNSOUND, "it names no class, but has a radius"
    found = known.get(place_of(new)) if new.subject is Subject.BASE else None
    if found is not None and refuted(radius, found.distance, new.norm):
        return Kind.UNSOUND, f"{found.source} at {found.distance:.6g}"
    unproved = recheck_counts.wrong(new)
    return None if unproved is None else (Kind.UNSOUND, f"its own counts do not prove it: {unproved}")


def _meaning(old: Row, new: Row) -> tuple[Kind, str] | None:
    """Return the class and the detail of a change beside the radius: of the claim, the class or the outcome."""
    for name in ("subject", "guarantee"):
        was, now = getattr(old, name).value, getattr(new, name).value
        if was != now:
            return Kind.INCOMPARABLE, f"the {name} {was} became {now}"
    if old.label != new.label:
        return Kind.LABEL_FLIP, f"the true class {old.label} became {new.label}"
    if ABSTAIN not in (old.prediction, new.prediction) and old.prediction != new.prediction:
        return Kind.LABEL_FLIP, f"the prediction {old.prediction} became {new.prediction}"
    if old.outcome.answered and not new.outcome.answered:
        return Kind.LOST, f"{new.outcome.value}: {new.reason}".rstrip(": ")
    return None


def _exact(old: Row, new: Row, tolerance: Tolerance) -> tuple[Kind, str]:
    if new.guarantee is Guarantee.PROBABILISTIC and not same_draws(old, new):
        return Kind.INCOMPARABLE, "the draws differ, and the evidence has no counts to test"
    if new.whole and old.radius > new.radius and new.outcome.answered:
        return Kind.SAME, "the whole domain is certified; the old radius reached beyond it"
    kind = classify(old.radius, new.radius, tolerance)
    if new.outcome.answered and not old.outcome.answered and kind in (Kind.SAME, Kind.NOISE, Kind.TIGHTER):
        return Kind.GAINED, f"{old.outcome.value} became {new.outcome.value}"
    return kind, "" if new.outcome is old.outcome else f"{new.outcome.value}: {new.reason}".rstrip(": ")


def _statistical(old: Row, new: Row, significant: bool) -> tuple[Kind, str]:
    proved = recheck_counts.largest(new)
    if proved is not None and new.radius < proved and not SHORT.covers(proved, new.radius):
        return Kind.LOST if new.radius == 0 else Kind.LOOSER, f"its own counts prove {proved:.6g}"
    if not significant:
        return (Kind.SAME if old.radius == new.radius else Kind.NOISE), ""
    before, after = counted(old), counted(new)
    assert before is not None and after is not None  # only such rows are tested
    top, _ = strongest(before[0], after[0])
    shares = [counts[top] / n for counts, n in (before, after)]
    detail = f"the share of class {top} went from {shares[0]:.4g} to {shares[1]:.4g}"
    if old.radius != new.radius:
        return classify(old.radius, new.radius, Tolerance(0.0, 0.0)), detail
    return (Kind.LOOSER if shares[1] < shares[0] else Kind.TIGHTER), detail
