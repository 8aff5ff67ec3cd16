"""What an audit came to: as an exit code, as JSON and as tables."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from certbench.auditing.contradictions import Finding
from certbench.auditing.recheck_bounds import Rebound
from certbench.auditing.rounding import FloatAudit
from certbench.auditing.smoothed_classifiers import Test, pooled
from certbench.results.rows import Row
from certbench.results.store import plain

OK, VIOLATED, UNSOUND, INCOMPLETE = 0, 1, 3, 5
SIGNIFICANT = 1e-3
"""Probability that sound smoothed certificates are called unsound, in one audit; half of it is shared by the tests of
each classifier, the other half is that of the test of all together."""
UNREACHED = "the budget was spent before"
UNBOUND = "the budget was spent before its bounds were computed again"
UNPROVED = "by its key, the row is of another model, input or version of the certifier"


@dataclass
class Result:
    """What an audit came to.

    Attributes:
        refuted: rows with a counterexample inside their ball, as read again from the store.
        misnamed: rows that certify a class which is not the base classifier's.
        recounted: smoothed rows that their own counts do not prove, and why.
        unproved: rows whose radius the certifier, whose bounds are the same each time, does not prove.
        unrepeated: likewise, of certifiers whose bounds may be looser another time.
        bounds: by model, certifier and norm, what came of bounding margins again, or why that was not done.
        missing: rows of the run that have not been computed.
        rows: base rows that were audited, as read again.
        credits: which attack found the closest counterexample, and how often.
        closer: counterexamples stored because they were closer than what was known.
        tests: of smoothed certificates, by model, certifier and norm.
        hits: smoothed rows where PREDICT named another class inside the radius.
        failed: attacks and bounds that failed, with the reason.
        unconfirmed: stored counterexamples that are none when replayed, or farther away: model, norm, input.
        skipped: what was not audited, with the reason.
        crossed: rows that contradict one another, or an order that is a theorem.
        floats: by model, certifier and norm, what rounding does to bounds, or why that is not known.
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
    crossed: list[Finding] = field(default_factory=list)
    floats: dict[tuple[str, str, float], FloatAudit | str] = field(default_factory=dict)

    @property
    def inconsistent(self) -> list[tuple[str, str, float]]:
        """Tests whose refutations chance does not explain."""
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
    def code(self) -> int:
        """The exit code."""
        if self.unsound:
            return UNSOUND
        left_out = any(reason in (UNREACHED, UNBOUND, UNPROVED) for _, reason in self.skipped)
        if left_out or self.failed or self.unconfirmed or self.unrepeated or self.missing:
            return INCOMPLETE
        return VIOLATED if self.crossed else OK


def _by_pair(rows: list[Row]) -> dict[tuple[str, str, float], list[Row]]:
    pairs: dict[tuple[str, str, float], list[Row]] = defaultdict(list)
    for row in rows:
        pairs[row.model, row.certifier, row.norm].append(row)
    return pairs


def record(result: Result, **settings: Any) -> dict[str, Any]:
    """The audit as JSON."""
    bad = {id(row) for row in [*result.refuted, *result.misnamed]}

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
        | {"mean radius": _mean(row.radius for row in rows), "mean upper": _mean(row.upper for row in rows)}
        for pair, rows in _by_pair(result.rows).items()
    ]
    smoothed = [
        {**key(pair), "tried": test.tried, "tested": test.tested, "refuted": test.refuted, "abstained": test.abstained}
        | {"alpha": test.alpha, "level": test.level, "expected": test.expected, "p_value": test.p_value}
        | {"shared draws": test.shared, "unsound": pair in result.inconsistent}
        for pair, test in result.tests.items()
    ]
    reasons: Counter[tuple[tuple[str, str, float], str]] = Counter(
        ((row.model, row.certifier, row.norm), reason) for row, reason in result.skipped
    )
    whole = {
        "version": 1,
        **settings,
        "unsound": result.unsound,
        "base": base,
        "refuted": [{**named(row), "radius": row.radius, "upper": row.upper} for row in result.refuted],
        "another class": [{**named(row), "radius": row.radius} for row in result.misnamed],
        "counts": [{**named(row), "radius": row.radius, "reason": reason} for row, reason in result.recounted],
        "not proved": [{**named(row), "radius": row.radius} for row in result.unproved],
        "not proved again": [{**named(row), "radius": row.radius} for row in result.unrepeated],
        "bounds": [
            {**key(pair), **({"reason": found} if isinstance(found, str) else {"proved": found.proved})}
            for pair, found in result.bounds.items()
        ],
        "missing": result.missing,
        "smoothed": smoothed,
        "smoothed, together": result.together,
        "smoothed refutations": [{**named(row), "radius": row.radius} for row in result.hits],
        "cross-audit": [
            {**named(found.row), "other": named(found.other), "law": found.law, "unsound": found.unsound}
            for found in result.crossed
        ],
        "float audit": [
            {**key(pair), **({"reason": found} if isinstance(found, str) else asdict(found))}
            for pair, found in result.floats.items()
        ],
        "closer": result.closer,
        "closest found by": dict(result.credits.most_common()),
        "attacks that failed": result.failed,
        "stored counterexamples that are none": [
            {"model": model, "norm": p, "input": index} for model, p, index in result.unconfirmed
        ],
        "not audited": [{**key(pair), "rows": n, "reason": reason} for (pair, reason), n in reasons.items()],
    }
    found: dict[str, Any] = plain(whole)
    return found


def _mean(values: Iterator[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


def show(result: Result, written: Mapping[str, Any], out: Console) -> None:
    """Print tables, and a line for whatever is wrong or was left out."""

    def number(value: float | None) -> str:
        return "-" if value is None else value if isinstance(value, str) else f"{value:.4g}"

    def table(*heads: str) -> Table:
        made = Table(box=None, pad_edge=False)
        for i, head in enumerate(heads):
            made.add_column(head, justify="left" if i < 3 else "right")
        return made

    if written["base"]:
        shown = table("model", "certifier", "norm", "rows", "refuted", "radius/upper", "largest", "radius", "upper")
        for part in written["base"]:
            share = part["radius / upper"]
            shown.add_row(
                part["model"], part["certifier"], _norm(part["norm"]), str(part["rows"]), str(part["refuted"]),
                number(share["median"]), number(share["largest"]), number(part["mean radius"]),
                number(part["mean upper"]),
            )  # fmt: skip
        out.print(shown)
    if written["smoothed"]:
        shown = table("model", "certifier", "norm", "tested", "refuted", "by chance", "abstained", "p-value")
        for part in written["smoothed"]:
            shown.add_row(
                part["model"], part["certifier"], _norm(part["norm"]), str(part["tested"]), str(part["refuted"]),
                f"<= {part['expected']:.2g}", str(part["abstained"]), number(part["p_value"]),
            )  # fmt: skip
        out.print(shown)
    if result.floats:
        shown = table(
            "model", "certifier", "norm", "bounds", "float32 above", "off by", "claims more", "batch", "threads",
            "least room", "living on rounding", "arithmetic",
        )  # fmt: skip
        for (model, name, p), found in result.floats.items():
            if isinstance(found, str):
                continue
            shown.add_row(
                model, name, _norm(p), str(found.bounds), str(found.exceed), f"{found.single:.1e}", str(found.claims),
                f"{found.batch:.1e}", f"{found.threads:.1e}", f"{found.room:.1e}", str(found.living), found.arithmetic,
            )  # fmt: skip
        out.print(shown)
    lines: list[str] = [f"{result.closer} counterexamples are closer than those known before"]
    for row in result.refuted[:10]:
        lines.append(f"UNSOUND: {_place(row)}: radius {row.radius:.6g}, but a counterexample lies at {row.upper:.6g}")
    for row in result.misnamed[:10]:
        lines.append(f"UNSOUND: {_place(row)}: certifies class {row.prediction}, which is not the classifier's")
    for model, name, p in result.inconsistent:
        test = result.tests[model, name, p]
        lines.append(
            f"UNSOUND: {name} on {model}, L{p:g}: {test.refuted} of {test.tested} smoothed certificates are refuted, "
            f"at most {test.expected:.2g} by chance on average (p-value {test.p_value:.2g})"
        )
    if result.chance and not result.inconsistent:
        lines.append(
            f"UNSOUND: smoothed certificates of {len(result.tests)} classifiers and norms: together, more are refuted "
            f"than by chance (p-value {result.together:.2g}); see the table"
        )
    for mark, what, rows in (
        ("UNSOUND", "its bounds do not prove", result.unproved),
        ("not proved again", "its bounds, which an optimiser chooses, do not prove", result.unrepeated),
    ):
        lines += [f"{mark}: {_place(row)}: {what} the radius {row.radius:.6g}" for row in rows[:10]]
        lines += [f"{len(rows)} such rows in all; see audit.json"] if len(rows) > 10 else []
    lines += [f"UNSOUND: {_place(row)}: its counts do not prove it: {why}" for row, why in result.recounted[:10]]
    if len(result.recounted) > 10:
        lines.append(f"{len(result.recounted)} such rows in all; see audit.json")
    lines += [f"{'UNSOUND' if crossed.unsound else 'ORDER'}: {crossed}" for crossed in result.crossed[:10]]
    if len(result.crossed) > 10:
        lines.append(f"{len(result.crossed)} contradictions between rows in all; see audit.json")
    for (model, name, p), rounding in result.floats.items():
        if isinstance(rounding, str):
            lines.append(f"no float audit of {name} on {model}, {_norm(p)}: {rounding}")
    for (model, name, p), again in result.bounds.items():
        if isinstance(again, str):
            lines.append(f"bounds of {name} on {model}, {_norm(p)}, not computed again: {again}")
    for part in written["not audited"]:
        lines.append(
            f"not audited: {part['rows']} rows of {part['certifier']} on {part['model']}, {_norm(part['norm'])}: "
            f"{part['reason']}"
        )
    lines += [f"failed: {name}: {reason}" for name, reason in result.failed.items()]
    if result.unconfirmed:
        text = "stored counterexamples are none when replayed, or farther away than is stored; see audit.json"
        lines.append(f"unconfirmed: {len(result.unconfirmed)} {text}")
    if result.missing:
        lines.append(f"missing: {result.missing} rows of this run have not been computed yet")
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)


def _place(row: Row) -> str:
    return f"{row.certifier} on {row.model}, L{row.norm:g}, input {row.input}"


def _norm(p: float | str) -> str:
    return f"L{float(p):g}"
