"""The result of an audit."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from certbench.auditing.contradictions import Contradiction
from certbench.auditing.recheck_bounds import Rebound
from certbench.auditing.rounding import FloatAudit
from certbench.auditing.smoothed_test import Test, pooled
from certbench.exit_codes import ExitCode
from certbench.files.json_text import plain
from certbench.results.rows import Row

SIGNIFICANT = 1e-3
"""Probability that one audit calls sound smoothed certificates unsound. The tests of single classifiers share half of
it, the test of all together has the other half."""


UNREACHED = "the budget was spent before they were reached"


UNBOUND = "the budget was spent before their bounds were computed again"


UNPROVED = "by its key, the row is of another model, input or version of the certifier"


@dataclass(frozen=True)
class Audit:
    """The findings of an audit; its lists and tables are filled while the audit goes on.

    Attributes:
        refuted: rows with a counterexample inside their ball, as read again from the store.
        misnamed: rows that certify another class than the base classifier's.
        recounted: smoothed rows that their own counts do not prove, with the reason.
        unproved: rows whose radius the certifier does not prove, if its bounds are the same each time.
        unrepeated: rows whose radius the certifier does not prove again, if its bounds may be looser another time.
        bounds: by model, certifier and norm, the result of bounding margins again, or the reason why it is missing.
        missing: number of the run's rows that have not been computed.
        rows: base rows that were audited, as read again.
        credits: for each attack, how often it found the closest counterexample.
        closer: number of counterexamples stored because they were closer than the known ones.
        tests: tests of smoothed certificates, by model, certifier and norm.
        hits: smoothed rows where PREDICT named another class inside the radius.
        failed: attacks and bounds that failed, with the reason.
        unconfirmed: model, norm and input of stored counterexamples that replaying does not confirm, or finds farther.
        skipped: rows that were not audited, with the reason.
        crossed: rows that contradict one another, or an order that is a theorem.
        floats: by model, certifier and norm, the effect of rounding on bounds, or the reason why it is unknown.
        folder: folder of the run.
        settings: seed, steps, and the allowed and spent seconds.
    """

    refuted: list[Row] = field(default_factory=list)
    misnamed: list[Row] = field(default_factory=list)
    recounted: list[tuple[Row, str]] = field(default_factory=list)
    unproved: list[Row] = field(default_factory=list)
    unrepeated: list[Row] = field(default_factory=list)
    bounds: dict[tuple[str, str, float], Rebound | str] = field(default_factory=dict)
    missing: int = 0
    rows: list[Row] = field(default_factory=list)
    credits: Counter[str] = field(default_factory=Counter)
    closer: int = 0
    tests: dict[tuple[str, str, float], Test] = field(default_factory=dict)
    hits: list[Row] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    unconfirmed: list[tuple[str, float, int]] = field(default_factory=list)
    skipped: list[tuple[Row, str]] = field(default_factory=list)
    crossed: list[Contradiction] = field(default_factory=list)
    floats: dict[tuple[str, str, float], FloatAudit | str] = field(default_factory=dict)
    folder: Path = Path()
    settings: Mapping[str, float] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """Path of the file that the audit is written to."""
        return self.folder / "audit.json"

    @property
    def inconsistent(self) -> list[tuple[str, str, float]]:
        """Keys of the tests whose refutations chance does not explain."""
        return [key for key, test in self.tests.items() if test.p_value < SIGNIFICANT / 2 / len(self.tests)]

    @property
    def together(self) -> float:
        """The p-value of all tests together."""
        return pooled([*self.tests.values()])

    @property
    def unsound(self) -> bool:
        """Whether a certificate is refuted, or not proved by its own method."""
        alone = self.refuted or self.misnamed or self.recounted or self.unproved
        return bool(alone) or any(found.unsound for found in self.crossed) or self.chance

    @property
    def chance(self) -> bool:
        """Whether more smoothed certificates are refuted than chance explains."""
        return bool(self.inconsistent) or self.together < SIGNIFICANT / 2

    @property
    def exit_code(self) -> ExitCode:
        """Exit code of the command; the gravest problem decides.

        `UNSOUND`: a certificate is refuted, or not proved by its own method. `INCOMPLETE`: rows are missing, something
        was not reached or not confirmed, or an attack failed. `VIOLATED`: an order of certifiers that is a theorem does
        not hold. Else `OK`.
        """
        if self.unsound:
            return ExitCode.UNSOUND
        left_out = any(reason in (UNREACHED, UNBOUND, UNPROVED) for _, reason in self.skipped)
        if left_out or self.failed or self.unconfirmed or self.unrepeated or self.missing:
            return ExitCode.INCOMPLETE
        return ExitCode.VIOLATED if self.crossed else ExitCode.OK


def _by_pair(rows: list[Row]) -> dict[tuple[str, str, float], list[Row]]:
    pairs: dict[tuple[str, str, float], list[Row]] = defaultdict(list)
    for row in rows:
        pairs[row.model, row.certifier, row.norm].append(row)
    return pairs


def record(audit: Audit) -> dict[str, Any]:
    """Return the audit as JSON."""
    bad = {id(row) for row in [*audit.refuted, *audit.misnamed]}

    def named(row: Row) -> dict[str, Any]:
        return {"model": row.model, "certifier": row.certifier, "norm": row.norm, "input": row.input}

    def key(key: tuple[str, str, float]) -> dict[str, Any]:
        return {"model": key[0], "certifier": key[1], "norm": key[2]}

    def ratios(rows: list[Row]) -> dict[str, Any]:
        found = [row.radius / row.upper for row in rows if row.radius > 0 and row.upper > 0]
        return {"median": median(found), "largest": max(found)} if found else {"median": None, "largest": None}

    base = [
        {**key(pair), "rows": len(rows), "claims": sum(row.radius > 0 for row in rows)}
        | {"refuted": sum(id(row) in bad for row in rows), "radius / upper": ratios(rows)}
        | {"mean radius": _mean(row.radius for row in rows if not row.unbounded)}
        | {"unbounded": sum(row.unbounded for row in rows), "mean upper": _mean(row.upper for row in rows)}
        for pair, rows in _by_pair(audit.rows).items()
    ]
    smoothed = [
        {**key(pair), "tried": test.tried, "tested": test.tested, "refuted": test.refuted, "abstained": test.abstained}
        | {"alpha": test.alpha, "level": test.level, "expected": test.expected, "p_value": test.p_value}
        | {"shared draws": test.shared, "unsound": pair in audit.inconsistent}
        for pair, test in audit.tests.items()
    ]
    reasons: Counter[tuple[tuple[str, str, float], str]] = Counter(
        ((row.model, row.certifier, row.norm), reason) for row, reason in audit.skipped
    )
    whole = {
        "version": 1,
        **audit.settings,
        "unsound": audit.unsound,
        "base": base,
        "refuted": [{**named(row), "radius": row.radius, "upper": row.upper} for row in audit.refuted],
        "another class": [{**named(row), "radius": row.radius} for row in audit.misnamed],
        "counts": [{**named(row), "radius": row.radius, "reason": reason} for row, reason in audit.recounted],
        "not proved": [{**named(row), "radius": row.radius} for row in audit.unproved],
        "not proved again": [{**named(row), "radius": row.radius} for row in audit.unrepeated],
        "bounds": [
            {**key(pair), **({"reason": found} if isinstance(found, str) else {"proved": found.proved})}
            for pair, found in audit.bounds.items()
        ],
        "missing": audit.missing,
        "smoothed": smoothed,
        "smoothed, together": audit.together,
        "smoothed refutations": [{**named(row), "radius": row.radius} for row in audit.hits],
        "cross-audit": [
            {**named(found.row), "other": named(found.other), "law": found.law, "unsound": found.unsound}
            for found in audit.crossed
        ],
        "float audit": [
            {**key(pair), **({"reason": found} if isinstance(found, str) else asdict(found))}
            for pair, found in audit.floats.items()
        ],
        "closer": audit.closer,
        "closest found by": dict(audit.credits.most_common()),
        "attacks that failed": audit.failed,
        "stored counterexamples that are none": [
            {"model": model, "norm": p, "input": index} for model, p, index in audit.unconfirmed
        ],
        "not audited": [{**key(pair), "rows": n, "reason": reason} for (pair, reason), n in reasons.items()],
    }
    found: dict[str, Any] = plain(whole)
    return found


def _mean(values: Iterator[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None
