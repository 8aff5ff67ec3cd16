"""The report of a run: one HTML file that needs no network and no JavaScript."""

import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from certbench.core.claims import Guarantee, Subject
from certbench.files import safe_text, writing
from certbench.report import tables
from certbench.report.figures import COLOURS, CURVES, SCATTER, SHAPES, Drawn, Panel, Scatter, panel, scatters
from certbench.results import metrics
from certbench.results.folder import radii
from certbench.results.metrics import EstimateSummary, Summary
from certbench.results.rows import Estimate, Row
from certbench.version import __version__

UNSOUND_SHOWN = 50
"""Maximum number of refuted rows that the page lists."""


@dataclass(frozen=True)
class Section:
    """The part of the page about one threat model."""

    threat: str
    norm: str
    inputs: str
    columns: list[tables.Column]
    groups: list[tuple[str, int]]
    models: list[tuple[str, list[Summary]]]
    estimates: list[list[str]]
    captions: list[tables.Note]
    failures: list[tables.Note]
    unsupported: list[tables.Note]
    certifiers: list[Drawn]
    attacked: bool
    panels: list[Panel]
    scatters: list[Scatter]


def write(
    path: str | os.PathLike[str],
    title: str,
    manifest: Mapping[str, Any],
    rows: Iterable[Row],
    radii: Mapping[float, Sequence[float]],
    estimates: Iterable[Estimate] = (),
    missing: int = 0,
) -> None:
    """Write the report of these rows; readers see the old file or the whole new one.

    Args:
        path: path of the HTML file, in a folder that exists.
        title: heading of the page.
        manifest: what was run, shown unchanged and in its own order; nested values too.
        rows: the run's rows.
        radii: for each norm, the eps at which certified accuracy is tabulated.
        estimates: the run's estimates, shown in tables of their own.
        missing: number of rows that have not been computed.

    Raises:
        StoreError: the file cannot be written; the old file is intact.
    """
    text = html(title, manifest, list(rows), radii, list(estimates), missing)
    writing.write(Path(path), text)


def write_report(
    folder: Path, manifest: Mapping[str, Any], rows: Iterable[Row], estimates: Iterable[Estimate], missing: int = 0
) -> Path:
    """Write the report of a run into its folder, and return its path.

    Raises:
        StoreError: the file cannot be written; the one that was there is intact.
    """
    path = folder / "report.html"
    write(path, f"certbench: {manifest['suite']['name']}", manifest, rows, radii(manifest), estimates, missing)
    return path


def html(
    title: str,
    manifest: Mapping[str, Any],
    rows: Sequence[Row],
    radii: Mapping[float, Sequence[float]],
    estimates: Sequence[Estimate] = (),
    missing: int = 0,
) -> str:
    """Return the page as text."""
    summaries = metrics.summarise(rows, radii)
    shapes = dict(zip(dict.fromkeys(row.model for row in rows), itertools.cycle(SHAPES), strict=False))
    refuted = [row for row in rows if row.unsound]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=safe_text.html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        version=__version__,
        facts=[_fact(key, value) for key, value in manifest.items()],
        rows=len(rows),
        missing=missing,
        pairs=len(summaries),
        refuted=refuted[:UNSOUND_SHOWN],
        refuted_count=len(refuted),
        attacked=sum(row.subject is Subject.BASE and row.radius > 0 and row.upper < math.inf for row in rows),
        failed=sum(s.failed for s in summaries),
        unsupported=sum(s.unsupported is not None for s in summaries),
        probabilistic=any(s.guarantee is Guarantee.PROBABILISTIC and s.answered for s in summaries),
        expected_wrong=tables.expected_wrong(summaries),
        smoothed=any(s.subject is Subject.SMOOTHED for s in tables.supported(summaries)),
        sections=_sections(rows, summaries, metrics.summarise_estimates(estimates), shapes),
        estimate_heads=tables.ESTIMATE_HEADS,
        estimate_caption=tables.ESTIMATES,
        shapes=shapes,
        colours=COLOURS,
        curves=CURVES,
        scatter=SCATTER,
        threat=lambda row: str(row.threat),
    )


def _sections(
    rows: Sequence[Row],
    summaries: Sequence[Summary],
    estimates: Sequence[EstimateSummary],
    shapes: Mapping[str, str],
) -> list[Section]:
    order = {name: i for i, name in enumerate(dict.fromkeys(row.certifier for row in rows))}
    pairs: dict[tuple[object, ...], list[Row]] = {}
    models: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        models.setdefault((row.norm, row.domain, row.scale, row.model), []).append(row)
        key = (row.norm, row.domain, row.scale, row.model, row.certifier, row.subject, row.guarantee)
        pairs.setdefault(key, []).append(row)

    def drawn(s: Summary) -> Drawn:
        cycle, colour = divmod(order[s.certifier], COLOURS)
        smoothed = s.subject is Subject.SMOOTHED
        return Drawn(
            s.certifier, smoothed, f"c{colour}" + (" smooth" if smoothed else "") + (" again" if cycle else "")
        )

    sections = []
    for threat, group in tables.by_threat(summaries):
        shown = tables.supported(group)
        cells = tables.columns(shown)
        notes = tables.notes(group)
        panels = []
        for model, of_model in itertools.groupby(shown, lambda s: s.model):
            chosen = list(of_model)
            steps = [
                metrics.curve(pairs[(s.norm, s.domain, s.scale, model, s.certifier, s.subject, s.guarantee)])
                for s in chosen
            ]
            attack = metrics.attack_curve(models[(threat.p, threat.domain, threat.scale, model)])
            panels.append(panel(model, [drawn(s) for s in chosen], steps, attack))
        certifiers = list(dict.fromkeys(drawn(s) for s in shown))
        sections.append(
            Section(
                threat=str(threat),
                norm=threat.name,
                inputs=tables.inputs(group),
                columns=cells,
                groups=[(name, len(list(of))) for name, of in itertools.groupby(cells, lambda c: c.group)],
                models=tables.by_model(shown),
                estimates=[tables.estimate_cells(s) for s in estimates if s.threat == threat],
                captions=[note for note in notes if note.kind in (tables.NoteKind.UNSOUND, tables.NoteKind.CAPTION)],
                failures=[note for note in notes if note.kind is tables.NoteKind.FAILURE],
                unsupported=[note for note in notes if note.kind is tables.NoteKind.UNSUPPORTED],
                certifiers=sorted(certifiers, key=lambda c: (c.smoothed, order[c.name])),
                attacked=any(panel.attack for panel in panels),
                panels=panels,
                scatters=scatters(f"{threat.name}, {tables.units(threat)}", shown, drawn, shapes),
            )
        )
    return sections


def _fact(key: str, value: Any) -> tuple[str, str, bool]:
    """Return the name and the text of a line of the manifest, and whether the text is a block to unfold."""
    if isinstance(value, Mapping) and all(map(_scalar, value.values())):
        text = ", ".join(f"{name} {part}" for name, part in value.items())
    elif isinstance(value, list | tuple) and all(map(_scalar, value)):
        text = ", ".join(map(str, value))
    elif _scalar(value):
        text = "none" if value is None else str(value)
    else:
        text = json.dumps(value, indent=2, default=str, ensure_ascii=False)
    return str(key).replace("_", " "), text, len(text) > 400 or "\n" in text


def _scalar(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)
