"""Tab-separated logs of randomized smoothing, as Cohen et al. (2019) and their descendants write them, and checks.

`certify` writes idx, label, predict, radius, correct and time; `predict` writes the same without a radius. Descendants
name a column differently, leave `correct` out, or add columns.
"""

import itertools
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from certbench.core.claims import ABSTAIN
from certbench.errors import ConfigError
from certbench.external.findings import Finding, Severity
from certbench.external.ladder import Printed, decimals, printed

NAMES = {
    "index": ("idx", "index", "id", "i", "original_idx"),
    "label": ("label", "target", "true", "y"),
    "predict": ("predict", "prediction", "pred", "predicted"),
    "radius": ("radius", "cert_radius", "certified_radius"),
    "correct": ("correct",),
    "time": ("time",),
}

RADII = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
"""Radii of the papers' tables on CIFAR-10 and ImageNet."""

ROWS = 10
"""Smallest number of rows at which a column that only grows is taken for a running total. This is a judgement."""


@dataclass(frozen=True)
class LogRow:
    """One row: the log's values for one input, None if the log has no such column."""

    line: int
    index: int | None
    label: int
    predicted: int
    radius: float | None
    text: str
    correct: float | None
    seconds: float | None

    @property
    def right(self) -> bool:
        """Whether the prediction is the label, whatever the column `correct` says."""
        return self.predicted == self.label


@dataclass(frozen=True, eq=False)
class Log:
    """A log: its path, its rows, and the columns that have no meaning here, as text."""

    path: Path
    entries: tuple[LogRow, ...]
    extra: dict[str, tuple[str, ...]]
    ended: bool

    @property
    def has_radii(self) -> bool:
        """Whether the log has certificates; else it only has predictions."""
        return self.entries[0].radius is not None

    @cached_property
    def radii(self) -> list[Printed]:
        """The distinct positive radii, as printed."""
        return printed([entry.text for entry in self.entries], self.entries[0].line) if self.has_radii else []

    @property
    def sigma(self) -> float | None:
        """Noise of the certificates, if the path states it: the one nearest to the end of the path."""
        return _stated(self.path, "sigma") or self.trained

    @property
    def trained(self) -> float | None:
        """Noise that the classifier was trained with, if the path states it."""
        return _stated(self.path, "noise")

    @cached_property
    def won(self) -> list[float]:
        """The finite radii of the rows that are right, ascending; other rows count at no radius."""
        own = [e.radius for e in self.entries if e.predicted == e.label and e.radius is not None]
        return sorted(radius for radius in own if -math.inf < radius < math.inf)

    @cached_property
    def proved(self) -> list[float]:
        """The smallest radii that may have been rounded to those in `won`, ascending."""
        half = {r.value: r.half for r in self.radii}
        return sorted(radius - half.get(radius, 0.0) for radius in self.won)

    def accuracy(self, radius: float) -> float:
        """Return certified accuracy in percent: the share of rows that are right with at least this radius."""
        return 100 * (len(self.won) - bisect_left(self.won, radius)) / len(self.entries)

    def by_rounding(self, radius: float) -> int:
        """Return the number of rows that count at this radius, but perhaps only because they were rounded up."""
        return bisect_left(self.proved, radius) - bisect_left(self.won, radius)

    @cached_property
    def clean(self) -> float:
        """Accuracy of the smoothed classifier in percent; abstaining counts as wrong."""
        return 100 * sum(e.predicted == e.label for e in self.entries) / len(self.entries)

    @cached_property
    def abstained(self) -> float:
        """Share of abstentions in percent."""
        return 100 * sum(e.predicted == ABSTAIN for e in self.entries) / len(self.entries)

    @cached_property
    def average_radius(self) -> float:
        """ACR (Zhai et al., 2020): the mean radius, counted as 0 if the prediction is wrong."""
        return math.fsum(radius for radius in self.won if radius > 0) / len(self.entries)


def _stated(path: Path, word: str) -> float | None:
    """Return the last number after a word in a path that can be a standard deviation: not `25` for 0.25."""
    found = re.findall(rf"{word}[_=-]?(\d+(?:\.\d+)?)", str(path), re.IGNORECASE)
    return float(found[-1]) if found and 0 < float(found[-1]) < 10 else None


def is_log(first: str) -> bool:
    """Say whether a first line is that of a log."""
    columns = [name.strip().lower() for name in first.split("\t")]
    return all(any(name in columns for name in NAMES[kind]) for kind in ("label", "predict"))


def read(path: Path, text: str) -> Log:
    """Read a log from its text.

    Raises:
        ConfigError: the text is no log; the message names file and line.
    """
    lines = text.split("\n")
    ended = lines[-1] == ""
    lines = [line.rstrip("\r") for line in (lines[:-1] if ended else lines)]
    if not lines or not is_log(lines[0]):
        raise ConfigError(f"{path}:1: the header must name at least label and predict, separated by tabs")
    header = [name.strip().lower() for name in lines[0].split("\t")]
    place: dict[str, int] = {}
    for kind, names in NAMES.items():
        columns = [j for j, name in enumerate(header) if name in names]
        if len(columns) > 1:
            raise ConfigError(f"{path}:1: {' and '.join(header[j] for j in columns)} both look like the {kind}")
        if columns:
            place[kind] = columns[0]
    cells = [line.split("\t") for line in lines[1:]]
    if not cells:
        raise ConfigError(f"{path}:1: there is a header, but no row")
    for number, row in enumerate(cells, 2):
        if len(row) != len(header):
            raise ConfigError(f"{path}:{number}: {len(row)} columns where the header has {len(header)}")
    column = {kind: [row[j].strip() for row in cells] for kind, j in place.items()}
    numbers = {kind: _parsed(path, kind, texts) for kind, texts in column.items()}
    nothing = [None] * len(cells)
    entries = tuple(
        LogRow(line, *values)
        for line, *values in zip(
            range(2, len(cells) + 2),
            *(numbers.get(kind, nothing) for kind in ("index", "label", "predict", "radius")),
            column.get("radius", [""] * len(cells)),
            *(numbers.get(kind, nothing) for kind in ("correct", "time")),
            strict=True,
        )
    )
    rest = {name: tuple(row[j] for row in cells) for j, name in enumerate(header) if j not in place.values()}
    return Log(path, entries, rest, ended)


def _parsed(path: Path, kind: str, texts: Sequence[str]) -> list[Any]:
    """Return a column as numbers; the first row is in line 2."""
    parsers: dict[str, Callable[[str], float]] = {"radius": float, "correct": _truth, "time": seconds}
    parse = parsers.get(kind, int)
    result = []
    for line, text in enumerate(texts, 2):
        try:
            if "_" in text:
                raise ValueError(text)  # which Python would accept
            result.append(parse(text))
        except (ValueError, OverflowError):
            raise ConfigError(f"{path}:{line}: {text!r} is no {kind}") from None
    return result


def _truth(text: str) -> float:
    return float({"true": "1", "false": "0"}.get(text.lower(), text))


def seconds(text: str) -> float:
    """Read a number of seconds, or Python's text for a duration: [D day[s], ]H:MM:SS[.ffffff].

    Raises:
        ValueError: the text is neither.
    """
    match = re.fullmatch(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)", text)
    if match is None:
        return float(text)
    days, hours, minutes, rest = match.groups(default="0")
    return 86400 * int(days) + 3600 * int(hours) + 60 * int(minutes) + float(rest)


def check(log: Log, classes: int | None = None) -> list[Finding]:
    """Return everything in a log that is inconsistent; `ladder` says what its radii tell about n and alpha.

    Args:
        log: the log to check.
        classes: number of classes.
    """
    return [
        *_classes(log, classes),
        *_abstentions(log),
        *_radii(log),
        *_by_rounding(log),
        *_correct(log),
        *_order(log),
        *_duplicates(log),
        *_running_totals(log),
        *_end(log),
    ]


def _found(check: str, severity: Severity, message: str, rows: Sequence[LogRow]) -> Iterator[Finding]:
    if rows:
        yield Finding(check, severity, message.format(n=len(rows)), tuple(row.line for row in rows))


def _classes(log: Log, classes: int | None) -> Iterator[Finding]:
    top = math.inf if classes is None else classes
    labels = [e for e in log.entries if not 0 <= e.label < top]
    predictions = [e for e in log.entries if e.predicted != ABSTAIN and not 0 <= e.predicted < top]
    yield from _found("label", Severity.WARNING, "labels that are no classes: {n}", labels)
    yield from _found("prediction", Severity.WARNING, "predictions that are no classes: {n}", predictions)


def _abstentions(log: Log) -> Iterator[Finding]:
    certified = [e for e in log.entries if e.predicted == ABSTAIN and e.radius is not None and not e.radius <= 0]
    exact = decimals([e.text for e in log.entries]) is None  # else a small radius may be printed as 0
    empty = [e for e in log.entries if e.predicted != ABSTAIN and e.radius == 0 and exact]
    yield from _found("abstention", Severity.REFUTED, "rows that abstain, but have a radius: {n}", certified)
    yield from _found(
        "abstention", Severity.WARNING, "rows that predict a class with radius 0, no abstention: {n}", empty
    )


def _radii(log: Log) -> Iterator[Finding]:
    infinite = [e for e in log.entries if e.radius is not None and not math.isfinite(e.radius)]
    negative = [e for e in log.entries if e.radius is not None and e.radius < 0]
    yield from _found("radius", Severity.REFUTED, "radii that are infinite or NaN: {n}", infinite)
    yield from _found("radius", Severity.REFUTED, "radii that are negative and so prove no class: {n}", negative)


def _by_rounding(log: Log) -> Iterator[Finding]:
    rows = {r: log.by_rounding(r) for r in RADII}
    if any(rows.values()):
        which = ", ".join(f"{count} at {r:g}" for r, count in rows.items() if count)
        text = f"rows that reach a radius of the tables perhaps only because they were rounded up: {which}"
        yield Finding("rounding", Severity.NOTE, text)


def _correct(log: Log) -> Iterator[Finding]:
    given = [e.correct for e in log.entries]
    if given[0] is None:
        yield Finding(
            "correct",
            Severity.NOTE,
            "there is no column `correct`; a row counts as right if prediction and label agree",
        )
        return
    if any(value not in (0, 1) for value in given):
        kind = _running([float(e.right) for e in log.entries], [value or 0.0 for value in given])
        what = f"is a running {kind} of the right rows" if kind else "has other values than 0 and 1"
        also = "; where a script combines it bit by bit with the radius, its parity decides" if kind == "count" else ""
        severity = Severity.WARNING if kind else Severity.REFUTED
        yield Finding("cumulative" if kind else "correct", severity, f"the column `correct` {what}{also}")
        return
    claimed = [e for e in log.entries if e.correct == 1 and not e.right]
    missed = [e for e in log.entries if e.correct == 0 and e.right]
    yield from _found("correct", Severity.REFUTED, "rows called correct whose prediction is another: {n}", claimed)
    yield from _found("correct", Severity.WARNING, "rows called wrong whose prediction is the label: {n}", missed)


def _running(flags: Sequence[float], values: Sequence[float]) -> str:
    """Say how a column accumulates flags: as their count or their mean (in percent or not); empty if it does not."""
    counts = list(itertools.accumulate(flags))
    means = [count / (i + 1) for i, count in enumerate(counts)]
    for kind, wanted, room in (
        ("count", counts, 0.0),
        ("mean", means, 0.0051),
        ("mean in percent", [100 * mean for mean in means], 0.051),
    ):
        if len(flags) > 1 and all(abs(a - b) <= room for a, b in zip(values, wanted, strict=True)):
            return kind
    return ""


def _order(log: Log) -> Iterator[Finding]:
    steps = [
        (after, after.index - before.index)
        for before, after in itertools.pairwise(log.entries)
        if before.index is not None and after.index is not None
    ]
    usual = Counter(step for _, step in steps if step > 0).most_common(1)
    if not usual:
        return
    step = usual[0][0]
    back = [e for e, change in steps if change < 0]
    gaps = [e for e, change in steps if change > 0 and change != step]
    missing = sum(max(change // step - 1, 0) for _, change in steps if change > 0)
    yield from _found("order", Severity.WARNING, "rows whose index goes back: {n}", back)
    what = f"the index grows by {step}, but not in {{n}} rows; about {missing} inputs are missing"
    yield from _found("gap", Severity.WARNING, what, gaps)


def _duplicates(log: Log) -> Iterator[Finding]:
    first: dict[int, LogRow] = {}
    again: list[LogRow] = []
    other: list[LogRow] = []
    for entry in log.entries:
        if entry.index is not None and (earlier := first.setdefault(entry.index, entry)) is not entry:
            (again if earlier.label == entry.label else other).append(entry)
    yield from _found("duplicate", Severity.WARNING, "rows of an input that already has a row: {n}", again)
    yield from _found(
        "duplicate", Severity.WARNING, "rows that give an input another label than an earlier row: {n}", other
    )


def _running_totals(log: Log) -> Iterator[Finding]:
    times = [e.seconds for e in log.entries if e.seconds is not None]
    if _grows(times):
        yield Finding("cumulative", Severity.WARNING, "the column `time` only grows: it looks like a running total")
    for name, column in log.extra.items():
        try:
            values = [float(text) for text in column]
        except ValueError:
            continue
        if _grows(values):
            yield Finding(
                "cumulative", Severity.WARNING, f"the column `{name}` only grows: it looks like a running total"
            )


def _grows(values: Sequence[float]) -> bool:
    rising = all(a <= b for a, b in itertools.pairwise(values))
    return len(values) >= ROWS and rising and values[-1] > 3 * max(values[0], 0)


def _end(log: Log) -> Iterator[Finding]:
    if not log.ended:
        yield Finding(
            *("truncated", Severity.WARNING, "the last line has no end: was the run interrupted?"),
            (log.entries[-1].line,),
        )
