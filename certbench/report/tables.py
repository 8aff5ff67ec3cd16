"""Tables of summaries: for the terminal with rich, for committed reports in Markdown."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from certbench.core.claims import Guarantee, Subject
from certbench.core.threat import ThreatModel
from certbench.files import safe_text
from certbench.results.metrics import EstimateSummary, Summary

SMOOTHED = (
    "smoothed: these rows certify another function than the classifier, its majority vote under noise; "
    "their radii are no certificates for the classifier itself."
)

LEGEND = (
    "accuracies in %; @r: correct with radius >= r; tight: radius / distance of the closest known counterexample; "
    "none: correct, but nothing proved; wrong: misclassified; prep.: seconds once, not per input."
)

UNBOUNDED = (
    "as nothing ended the search before its limit (a constant classifier, say); no mean, median or ACR has them."
)

ESTIMATES = (
    "Estimates prove nothing: they guess how far the closest counterexample of a correctly classified input lies. "
    "An estimate above the distance at which the attacks found a counterexample is refuted as a bound. capped: as "
    "large as the radius that was sampled, which is the largest possible estimate."
)

ESTIMATE_HEADS = ("model", "estimate, proves nothing", "inputs", "mean", "capped", "estimate / attack", "above attack")


@dataclass(frozen=True)
class Column:
    """One column of every table.

    Attributes:
        group: what the column is about, with the unit.
        head: a short name.
        meaning: what the numbers mean, in a sentence.
        cell: the column's text for one summary.
    """

    group: str
    head: str
    meaning: str
    cell: Callable[[Summary], str]


class NoteKind(Enum):
    """Kind of a note below a table."""

    UNSOUND = "unsound"
    CAPTION = "caption"
    FAILURE = "failure"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True)
class Note:
    """One line below a table."""

    kind: NoteKind
    text: str


_STYLES = {NoteKind.UNSOUND: "bold red", NoteKind.CAPTION: "dim", NoteKind.FAILURE: "", NoteKind.UNSUPPORTED: ""}


def by_threat(summaries: Iterable[Summary]) -> list[tuple[ThreatModel, list[Summary]]]:
    """Group summaries by threat model, in order: one table each."""
    return [(threat, list(group)) for threat, group in itertools.groupby(summaries, lambda s: s.threat)]


def units(threat: ThreatModel) -> str:
    """Return the units of radii and distances, in two words."""
    return "scale units" if threat.units == "units of the scale" else "input units"


def by_model(summaries: Iterable[Summary]) -> list[tuple[str, list[Summary]]]:
    """Group summaries under headings; base and smoothed classifiers never share one."""
    groups = [list(group) for _, group in itertools.groupby(summaries, lambda s: (s.model, s.subject))]
    return [(_heading(group[0]), group) for group in groups]


def supported(summaries: Iterable[Summary]) -> list[Summary]:
    """Return the summaries that have figures to show."""
    return [s for s in summaries if s.unsupported is None]


def inputs(summaries: Sequence[Summary]) -> str:
    """Say how many inputs the rows of a table are about."""
    counts = sorted({s.n for s in supported(summaries)})
    if len(counts) > 1:
        return f"{counts[0]} to {counts[-1]} inputs"
    return "" if not counts else "1 input" if counts == [1] else f"{counts[0]} inputs"


def columns(summaries: Sequence[Summary]) -> list[Column]:
    """Return the columns of one table, after model, certifier and guarantee."""
    group = "accuracy, %"
    result = [Column(group, "clean", "the certified function predicts the label", lambda s: _percent(s.clean_accuracy))]
    for i, (eps, _) in enumerate(summaries[0].certified_accuracy if summaries else ()):
        meaning = f"certified accuracy: correct, with certified radius >= {eps_text(eps)}"
        result.append(Column(group, f"@{eps_text(eps)}", meaning, _certified_accuracy(i)))
    group = f"radius, {units(summaries[0].threat) if summaries else 'input units'}"
    digits = _digits(s.mean_radius or 0.0 for s in summaries)
    result += [
        Column(group, "mean", "mean certified radius", lambda s: _fixed(s.mean_radius, digits)),
        Column(group, "median", "median certified radius", lambda s: _fixed(s.median_radius, digits)),
        Column(group, "ACR", "average certified radius, the mean of radius x correct", lambda s: _fixed(s.acr, digits)),
    ]
    if any(s.unbounded for s in summaries):
        meaning = "inputs whose radius is unbounded; mean, median and ACR are about the others"
        result.append(Column(group, "unb.", meaning, lambda s: str(s.unbounded)))
    result += [
        Column(
            group,
            "tight",
            "mean of radius / distance of the closest known counterexample, over correct inputs that have one",
            lambda s: "-" if s.tightness is None else f"{s.tightness:.2f}",
        ),
    ]
    group = "inputs"
    if len({s.n for s in summaries}) > 1:
        result.append(Column(group, "n", "number of inputs", lambda s: str(s.n)))
    result += [
        Column(group, "none", "correct, but nothing was proved", lambda s: str(s.uncertified)),
        Column(group, "wrong", "misclassified", lambda s: str(s.misclassified)),
        Column(group, "abst.", "abstained: the method could not tell the class", lambda s: str(s.abstained)),
        Column(group, "fail", "timed out, out of memory or failed", lambda s: str(s.failed)),
    ]
    group = "seconds"
    result += [
        Column(group, "s/input", "mean time per input, preparation not included", lambda s: seconds(s.seconds)),
        Column(group, "prep.", "preparation, once for all inputs", lambda s: seconds(s.prepare_seconds)),
    ]
    return result


def notes(summaries: Sequence[Summary]) -> list[Note]:
    """Return the notes that belong below the table of these summaries."""
    shown = supported(summaries)
    result = [
        Note(
            NoteKind.UNSOUND,
            f"UNSOUND: {name(s)}: {s.unsound} of {s.n} certificates are refuted by a known counterexample",
        )
        for s in shown
        if s.unsound
    ]
    if any(s.subject is Subject.SMOOTHED for s in shown):
        result.append(Note(NoteKind.CAPTION, SMOOTHED))
    if any(s.guarantee is Guarantee.PROBABILISTIC for s in shown):
        result.append(Note(NoteKind.CAPTION, expected_wrong(shown)))
    result += [Note(NoteKind.CAPTION, f"{name(s)}: {s.unbounded} unbounded, {UNBOUNDED}") for s in shown if s.unbounded]
    if any(s.failed for s in shown):
        result.append(Note(NoteKind.CAPTION, "Failed inputs count in every denominator, as not certified."))
    for s in shown:
        for outcome, count in s.failures.items():
            reason = one_line(s.reasons[outcome])
            result.append(
                Note(NoteKind.FAILURE, f"{name(s)}: {count} {outcome.value}" + (f"; first: {reason}" if reason else ""))
            )
    refused: dict[tuple[str, str], list[str]] = {}
    for s in summaries:
        if s.unsupported is not None:
            refused.setdefault((s.certifier, one_line(s.unsupported)), []).append(s.model)
    for (certifier, reason), models in refused.items():
        result.append(Note(NoteKind.UNSUPPORTED, f"{certifier}: unsupported for {', '.join(models)}: {reason}"))
    return result


def expected_wrong(summaries: Iterable[Summary]) -> str:
    """Say in a sentence how many of the probabilistic certificates may be wrong."""
    chosen = [s for s in summaries if s.guarantee is Guarantee.PROBABILISTIC and s.answered]
    known = [s for s in chosen if s.alpha is not None]
    text = "probabilistic: each certificate is wrong with probability at most alpha"
    if known:
        alphas = " or ".join(f"{alpha:g}" for alpha in sorted({s.alpha for s in known if s.alpha is not None}))
        wrong = sum(s.expected_wrong or 0.0 for s in known)
        text += f" = {alphas}; expect at most {wrong:.2g} wrong ones for {sum(s.answered for s in known)} inputs tried"
        if len(known) > 1:
            text += f", {max(s.expected_wrong or 0.0 for s in known):.2g} in a row of the table"
    if len(known) < len(chosen):
        text += "; alpha is not recorded for " + ", ".join(name(s) for s in chosen if s.alpha is None)
    return text + "."


def estimate_cells(summary: EstimateSummary) -> list[str]:
    """Return the cells of a row under `ESTIMATE_HEADS`."""
    return [
        summary.model,
        summary.method,
        str(summary.n),
        "-" if summary.mean is None else _fixed(summary.mean, _digits([summary.mean])),
        str(summary.capped),
        "-" if summary.ratio is None else f"{summary.ratio:.2f}",
        f"{summary.above} of {summary.attacked}",
    ]


def render(summaries: Sequence[Summary], console: Console, estimates: Sequence[EstimateSummary] = ()) -> None:
    """Print one table per threat model.

    If the console is too narrow for all columns (80 when piped), the table continues below with the remaining
    columns, so that no figure is cut off.
    """
    for threat, group in by_threat(summaries):
        shown = supported(group)
        console.print(Text(f"{threat}  {inputs(group)}", style="bold"), soft_wrap=True)
        for label_width, block in _blocks(shown, columns(shown), console.width) if shown else ():
            console.print(_table(shown, block, label_width))
            console.print()
        if shown:
            console.print(Text(LEGEND, style="dim"))
        for note in notes(group):
            # prose is wrapped; a line about one pair stays one line, for grep
            console.print(Text(note.text, style=_STYLES[note.kind]), soft_wrap=note.kind is not NoteKind.CAPTION)
        guesses = [s for s in estimates if s.threat == threat]
        if guesses:
            console.print()
            console.print(_estimate_table(guesses))
            console.print(Text(ESTIMATES, style="dim"))
        console.print()


def markdown(summaries: Sequence[Summary], estimates: Sequence[EstimateSummary] = ()) -> str:
    """Write the same tables in Markdown, for a README or a committed report."""
    lines: list[str] = []
    for threat, group in by_threat(summaries):
        shown = supported(group)
        cells = columns(shown)
        lines += [f"### {threat}" + (f", {inputs(group)}" if shown else ""), ""]
        if shown:
            heads = ["model", "certifies", "certifier", "guarantee", *(_markdown_head(c) for c in cells)]
            lines += [_markdown_row(heads), _markdown_rule(4, len(cells))]
            lines += [
                _markdown_row([s.model, s.subject.value, s.certifier, s.guarantee.value, *(c.cell(s) for c in cells)])
                for s in shown
            ]
            lines += ["", safe_text.markdown(LEGEND), ""]
        lines += [f"- {safe_text.markdown(note.text)}" for note in notes(group)]
        guesses = [s for s in estimates if s.threat == threat]
        if guesses:
            lines += ["", _markdown_row(ESTIMATE_HEADS), _markdown_rule(2, 5)]
            lines += [_markdown_row(estimate_cells(s)) for s in guesses] + ["", safe_text.markdown(ESTIMATES)]
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def name(summary: Summary) -> str:
    """Name the pair of model and certifier in a sentence."""
    return f"{summary.model} / {summary.certifier}"


def one_line(reason: str) -> str:
    """Return a reason without line breaks, cut to 300 characters."""
    text = " ".join(reason.split())
    return text if len(text) <= 300 else text[:297] + "..."


def seconds(value: float) -> str:
    """Write a time with two digits."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def eps_text(eps: float) -> str:
    """Write an eps as people do: 0.25, or 8/255."""
    short = f"{eps:.3g}"
    levels = round(eps * 255)
    return f"{levels}/255" if float(short) != eps and abs(eps * 255 - levels) < 1e-9 else short


def _certified_accuracy(i: int) -> Callable[[Summary], str]:
    return lambda s: _percent(s.certified_accuracy[i][1])


def _digits(radii: Iterable[float]) -> int:
    """Return the number of decimals that show the largest of these radii with about three digits."""
    largest = max((radius for radius in radii if 0 < radius < math.inf), default=1.0)
    magnitude = math.floor(math.log10(largest))
    return 2 - magnitude if magnitude < -1 else max(0, 3 - max(0, magnitude))


def _fixed(radius: float | None, digits: int) -> str:
    """Write a radius with that many decimals, and no radius as -; a positive radius never looks like 0."""
    if radius is None:
        return "-"
    text = f"{radius:.{digits}f}"
    return f"{radius:.0e}" if radius > 0 and float(text) == 0 else text


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _heading(summary: Summary) -> str:
    return summary.model + (", smoothed" if summary.subject is Subject.SMOOTHED else "")


def _label(summary: Summary) -> str:
    return ("!! " if summary.unsound else "") + summary.certifier


def _guarantee(summary: Summary) -> str:
    return {Guarantee.PROBABILISTIC: "prob.", Guarantee.COMPLETE: "compl."}.get(summary.guarantee, "sound")


def _blocks(shown: Sequence[Summary], cells: Sequence[Column], width: int) -> list[tuple[int, list[Column]]]:
    """Split the columns into blocks that fit the width; each has the width of its first column, the certifier."""
    widths = [max(len(c.head), *(len(c.cell(s)) for s in shown)) + 1 for c in cells]
    longest = max(len("certifier"), *(len(_label(s)) + 2 for s in shown), *(len(_heading(s)) for s in shown))
    room = width - 1 - max(len(_guarantee(s)) for s in shown)
    if room - sum(widths) >= min(longest, 20):
        return [(min(longest, room - sum(widths)), list(cells))]
    label = min(longest, max(20, width // 3))
    blocks: list[list[Column]] = []
    left = 0
    for cell, needed in zip(cells, widths, strict=True):
        if left < needed:
            blocks.append([])
            left = room - label
        blocks[-1].append(cell)
        left -= needed
    return [(label, block) for block in blocks]


def _table(shown: Sequence[Summary], block: Sequence[Column], label_width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, header_style="bold")
    table.add_column(Text("certifier"), width=label_width, overflow="fold")
    table.add_column(Text(""), no_wrap=True)
    for column in block:
        table.add_column(Text(column.head), justify="right", no_wrap=True)
    for heading, group in by_model(shown):
        table.add_section()
        table.add_row(Text(heading, style="bold"))
        for s in group:
            text = _label(s)
            if len(text) + 2 > label_width:
                text = text.replace("(", " (", 1)  # rich breaks lines at spaces
            label = Text(text, style="bold red" if s.unsound else "")
            table.add_row(Padding(label, (0, 0, 0, 2)), Text(_guarantee(s)), *(Text(c.cell(s)) for c in block))
    return table


def _estimate_table(guesses: Iterable[EstimateSummary]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, header_style="bold")
    for i, head in enumerate(ESTIMATE_HEADS):
        table.add_column(Text(head), justify="left" if i < 2 else "right", overflow="fold")
    for s in guesses:
        table.add_row(*(Text(cell) for cell in estimate_cells(s)))
    return table


def _markdown_head(column: Column) -> str:
    return {"clean": "clean %", "prep.": "prep. s"}.get(column.head, column.head)


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(safe_text.markdown(cell) for cell in cells) + " |"


def _markdown_rule(left: int, right: int) -> str:
    """Return the line below the heads: columns to the left, then columns to the right."""
    return "|" + " --- |" * left + " ---: |" * right
