"""The output of comparisons as text, Markdown, JSON or JUnit's XML, and of baselines and their updates as lines."""

import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any
from xml.etree import ElementTree

from rich.table import Table
from rich.text import Text

from certbench.comparison.baseline import BENCHMARK, Baseline
from certbench.comparison.classes import Kind
from certbench.comparison.compare import Change, Comparison
from certbench.comparison.update import BaselineUpdate
from certbench.core import registry
from certbench.errors import ConfigError
from certbench.exit_codes import ExitCode
from certbench.files import safe_text
from certbench.files.json_text import plain
from certbench.results.rows import Row

SHOWN = 20
"""Largest number of rows that text and Markdown list for one class; JSON and JUnit have all."""

QUIET = (Kind.SAME, Kind.NOISE, Kind.NEW)
"""Classes whose rows are counted, not listed."""

VERDICTS = {
    ExitCode.OK: "There is no difference that the policy forbids.",
    ExitCode.VIOLATED: "The policy is violated.",
    ExitCode.UNSOUND: "A radius is unsound, or not a number: do not use that certifier. `certbench audit RUN` says "
    "more; only a change of the code helps, not a new baseline.",
    ExitCode.INCOMPARABLE: "The two sides cannot be compared: model, data, claim or machine differ.",
    ExitCode.INCOMPLETE: "The new run is incomplete.",
}


def told(comparison: Comparison) -> Iterator[Table | str]:
    """Yield the comparison as tables and lines for the terminal."""
    yield f"{comparison.old.name} -> {comparison.new.name}"
    for title, heads, rows in _tables(comparison):
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for head in heads:
            table.add_column(head, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        yield table
    yield from _verdict(comparison)


def text(comparison: Comparison) -> str:
    """Return what `told` yields as text of 160 columns, without colours."""
    file = io.StringIO()
    console = safe_text.SafeConsole(file=file, width=160)
    for part in told(comparison):
        console.print(part, soft_wrap=isinstance(part, str))
    return file.getvalue()


def markdown(comparison: Comparison) -> str:
    """Return Markdown, for a job's summary or a comment on a pull request."""
    parts = [f"### {safe_text.markdown(comparison.old.name)} → {safe_text.markdown(comparison.new.name)}\n"]
    for title, heads, rows in _tables(comparison):
        lines = [f"**{title}**\n", _line(heads), "|" + " --- |" * len(heads), *map(_line, rows)]
        parts.append("\n".join(lines) + "\n")
    return "\n".join([*parts, *(f"- {safe_text.markdown(line)}" for line in _verdict(comparison))]) + "\n"


def as_json(comparison: Comparison) -> str:
    """Return JSON of everything; rows that are the same are only counted."""
    counts = Counter(change.kind for change in comparison.changes)
    values = {
        "old": comparison.old.name,
        "new": comparison.new.name,
        "exit_code": comparison.exit_code,
        "verdict": _verdict(comparison),
        "counts": {kind.value: counts[kind] for kind in Kind},
        "changes": [_values(change) for change in comparison.changes if change.kind is not Kind.SAME],
        "known": [_values(change) | {"reason": reason} for change, reason in comparison.known],
        "slower": [{"name": name, "ratio": ratio} for name, ratio in comparison.slower],
    }
    return json.dumps(_finite(values), indent=1, allow_nan=False) + "\n"


def junit(comparison: Comparison) -> str:
    """Return JUnit's XML: one test case for each model, certifier and norm, and one for the two sides as a whole."""
    failing = {id(change): kind for _, kind, _, changes in comparison.over("fail") for change in changes}
    suite = ElementTree.Element("testsuite", name="certbench compare")
    groups: dict[tuple[str, str], list[Change]] = {}
    for change in comparison.changes:
        row = change.row
        groups.setdefault((row.model, f"{row.certifier} {_norm(row)}".rstrip()), []).append(change)
    failures = 0
    for (model, name), changes in groups.items():
        case = ElementTree.SubElement(suite, "testcase", classname=model, name=name)
        wrong = [change for change in changes if id(change) in failing]
        if wrong:
            failures += 1
            counts = Counter(change.kind.value for change in wrong)
            message = ", ".join(f"{count} {kind}" for kind, count in counts.items())
            failure = ElementTree.SubElement(case, "failure", message=message, type=wrong[0].kind.value)
            failure.text = "\n".join(safe_text.terminal(": ".join(filter(None, _described(one)))) for one in wrong)
    whole = ElementTree.SubElement(suite, "testcase", classname="certbench", name="both sides")
    if comparison.exit_code in (ExitCode.INCOMPARABLE, ExitCode.INCOMPLETE) or comparison.slower:
        failures += 1
        ElementTree.SubElement(whole, "failure", message=" ".join(_verdict(comparison)), type="run")
    ElementTree.SubElement(suite, "system-out").text = "\n".join(map(safe_text.terminal, _verdict(comparison)))
    suite.attrib |= {"tests": str(len(groups) + 1), "failures": str(failures), "errors": "0"}
    ElementTree.indent(suite)
    written = ElementTree.tostring(suite, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{safe_text.lines(written)}\n'


SHAPES: Mapping[str, Callable[[Comparison], str]] = {
    "text": text,
    "markdown": markdown,
    "json": as_json,
    "junit": junit,
}
"""Formats of the result, each with the function that writes it."""


def shape_of(name: str) -> Callable[[Comparison], str]:
    """Return the function that writes a format.

    Raises:
        ConfigError: there is no such format.
    """
    if name not in SHAPES:
        raise ConfigError(registry.unknown("format", name, SHAPES), ("format",))
    return SHAPES[name]


def told_update(update: BaselineUpdate) -> Iterator[str]:
    """Yield the result of a baseline's update, as lines."""
    if update.written:
        yield f"{update.file}: {update.changed}"
        return
    for row, kind, why in update.wrong[:10]:
        where = f"{row.certifier} on {row.model}, L{row.norm:g}, input {row.input}"
        yield f"{kind.value}: {where}: radius {row.radius:.6g}; {why}"
    yield f"The baseline stays: {len(update.wrong)} rows are wrong, {update.uncomputed} have not been computed."
    again = "run the suite again; it computes the missing rows"
    yield f"Next: {f'certbench audit {update.run}' if update.wrong else again}."


def told_baseline(baseline: Baseline) -> Iterator[str]:
    """Yield the groups of a baseline's rows, and the reasons of its changes, as lines."""
    side = baseline.side
    yield f"{side.name}: {len(side.rows)} rows of {len(side.models)} models"
    yield f"made with {', '.join(f'{name} {version}' for name, version in side.versions.items())}"
    for (certifier, model, norm), group in groupby(side.rows, lambda row: (row.certifier, row.model, row.norm)):
        of_group = list(group)
        bounded = [row.radius for row in of_group if not row.unbounded]
        mean, apart = math.fsum(bounded) / max(len(bounded), 1), len(of_group) - len(bounded)
        said = f"mean radius {mean:.6g}" + (f" ({apart} unbounded, left out)" if apart else "")
        yield f"  {certifier} on {model}, L{norm:g}: {len(of_group)} inputs, {said}"
    for entry in baseline.history:
        yield f"{entry['date']}  {entry['reason']}  ({entry['changed']})"


def _tables(comparison: Comparison) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return title, heads and rows of each table: classes by certifier, then the rows of each class to be listed."""
    kinds = [kind for kind in Kind if any(change.kind is kind for change in comparison.changes)]
    groups: dict[tuple[str, str, str], Counter[Kind]] = {}
    for change in comparison.changes:
        row = change.row
        groups.setdefault((row.model, row.certifier, _norm(row)), Counter())[change.kind] += 1
    counts = [
        [*names, *(str(found[kind] or "") for kind in kinds)]
        for names, found in groups.items()
        if found.keys() - {Kind.SAME}
    ]
    total = Counter(change.kind for change in comparison.changes)
    counts.append(["all", "", "", *(str(total[kind]) for kind in kinds)])
    tables = [("rows by class", ["model", "certifier", "norm", *(kind.value for kind in kinds)], counts)]
    for kind in kinds:
        changes = [change for change in comparison.changes if change.kind is kind]
        if kind not in QUIET:
            changes.sort(key=lambda change: -abs(change.size))
            title = kind.value + (f", {SHOWN} of {len(changes)}" if len(changes) > SHOWN else "")
            rows = [[*_described(change)] for change in changes[:SHOWN]]
            tables.append((title, ["row", "radius", "detail"], rows))
    if comparison.known:
        rows = [[_described(change)[0], change.kind.value, reason] for change, reason in comparison.known]
        tables.append(("known issues", ["row", "class", "reason"], rows))
    return tables


def _described(change: Change) -> tuple[str, str, str]:
    row, old, new = change.row, change.old, change.new
    place = ", ".join(filter(None, (row.model, row.certifier, _norm(row), f"input {row.input}")))
    radii = " -> ".join("none" if side is None else f"{side.radius:.6g}" for side in (old, new))
    if old is not None and new is not None and math.isfinite(change.size) and change.size:
        radii += f" ({100 * change.size:+.2f} %)"
    p = "" if change.p is None else f"p = {change.p:.2g}"
    return place, radii, ", ".join(filter(None, (change.detail, p)))


def _norm(row: Row) -> str:
    return "" if row.certifier == BENCHMARK else f"L{row.norm:g}"


def _verdict(comparison: Comparison) -> list[str]:
    """Return what the policy says, then further notes, then the verdict."""
    lines = []
    for action in ("fail", "warn"):
        for pattern, kind, rule, changes in comparison.over(action):
            sized = f" by more than {100 * rule.more_than:g} %" if rule.more_than else ""
            where = "" if pattern == "*" else f" of {pattern}"
            lines.append(
                f"{action}: {len(changes)} rows{where} are {kind.value}{sized}; the policy allows {rule.at_most}"
            )
    for name, ratio in comparison.slower:
        lines.append(f"fail: {name} takes {ratio:.2f} times as long; the policy allows {comparison.policy.slower:g}")
    if comparison.foreign:
        lines.append(f"fail: times of {comparison.old.machine} and {comparison.new.machine} cannot be compared")
    moved = [change.size for change in comparison.changes if change.kind is Kind.NOISE and math.isfinite(change.size)]
    if moved:
        mean = 100 * math.fsum(moved) / len(moved)
        lines.append(f"note: {len(moved)} rows moved by noise, by {mean:+.3g} % on average")
    versions = [(name, comparison.old.versions.get(name), version) for name, version in comparison.new.versions.items()]
    lines += [f"note: {name} {old} -> {new}" for name, old, new in versions if old is not None and old != new]
    for pattern, fits in comparison.unused.items():
        why = "is never used: an earlier one fits all that it fits" if fits else "fits no certifier"
        lines.append(f"note: the policy's pattern {pattern!r} {why}")
    lines += comparison.notes
    for side in (comparison.old, comparison.new):
        if side.uncomputed:
            lines.append(f"note: {side.uncomputed} rows of {side.name} have not been computed")
    return [*lines, VERDICTS[comparison.exit_code]]


def _values(change: Change) -> dict[str, Any]:
    row, old, new = change.row, change.old, change.new
    return {
        "class": change.kind.value,
        **{name: getattr(row, name) for name in ("model", "certifier", "norm", "domain", "input")},
        "old": None if old is None else old.radius,
        "new": None if new is None else new.radius,
        "change": change.size,
        "p": change.p,
        "detail": change.detail,
    }


def _finite(value: Any) -> Any:
    """Return the value with NaN as text, which JSON lacks too; infinities are text, as in the store."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return "nan" if isinstance(value, float) and math.isnan(value) else plain(value)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(map(safe_text.markdown, cells)) + " |"
