"""The report of a run: one HTML file that needs no network and no JavaScript."""

import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from certbench import __version__
from certbench.core.claims import Guarantee, Subject
from certbench.core.threat import ThreatModel
from certbench.errors import StoreError
from certbench.report import tables
from certbench.results import metrics
from certbench.results.metrics import EstimateSummary, Steps, Summary
from certbench.results.rows import Estimate, Row

COLOURS = 8
"""Colours of the template; a ninth certifier takes the first one again, with thinner, dotted lines."""

SHAPES = (  # markers of the scatter plots, drawn around 0, 0; a ninth model takes the first one again
    "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0-12 0z",
    "M-5.5-5.5h11v11h-11z",
    "M0-7.5L7 5.5h-14z",
    "M0-8L6.5 0 0 8-6.5 0z",
    "M0 7.5L7-5.5h-14z",
    "M-2-7h4v5h5v4h-5v5h-4v-5h-5v-4h5z",
    "M0-7.5L6.5-3.7V3.7L0 7.5-6.5 3.7V-3.7z",
    "M-6.5-3.5L-3.5-6.5 0-3 3.5-6.5 6.5-3.5 3 0 6.5 3.5 3.5 6.5 0 3-3.5 6.5-6.5 3.5-3 0z",
)

UNSOUND_SHOWN = 50


@dataclass(frozen=True)
class Frame:
    """Where a plot's axes lie, in SVG units."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    def x(self, share: float) -> float:
        """Position of a share of the x axis."""
        return self.left + share * (self.right - self.left)

    def y(self, share: float) -> float:
        """Position of a share of the y axis."""
        return self.bottom - share * (self.bottom - self.top)


CURVES = Frame(600, 420, 92, 588, 16, 340)
SCATTER = Frame(640, 390, 64, 628, 14, 336)


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Certifier:
    """How a certifier is drawn, the same in every plot."""

    name: str
    smoothed: bool
    css: str


@dataclass(frozen=True)
class Line:
    """One certified-accuracy curve."""

    certifier: Certifier
    path: str


@dataclass(frozen=True)
class Panel:
    """The curves of one model."""

    model: str
    lines: list[Line]
    attack: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]


@dataclass(frozen=True)
class Point:
    """One pair in a scatter plot."""

    certifier: Certifier
    shape: str
    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Scatter:
    """How much is proved against what it costs."""

    title: str
    x_label: str
    y_label: str
    points: list[Point]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


@dataclass(frozen=True)
class Section:
    """Everything about one threat model."""

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
    certifiers: list[Certifier]
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
) -> None:
    """Write the report of these rows; readers see the old file or the whole new one.

    Args:
        path: of the HTML file, in a folder that exists.
        title: heading of the page.
        manifest: what was run, shown as it is in its own order; nested values too.
        rows: of the run.
        radii: for each norm, the eps at which certified accuracy is tabulated.
        estimates: of the run, shown in tables of their own.

    Raises:
        StoreError: the file cannot be written; the one that was there is intact.
    """
    target = Path(path)
    text = html(title, manifest, list(rows), radii, list(estimates))
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(draft, target)
    except OSError as error:
        raise StoreError(f"cannot write the report {target}: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)


def html(
    title: str,
    manifest: Mapping[str, Any],
    rows: Sequence[Row],
    radii: Mapping[float, Sequence[float]],
    estimates: Sequence[Estimate] = (),
) -> str:
    """The page as text."""
    summaries = metrics.summarise(rows, radii)
    shapes = dict(zip(dict.fromkeys(row.model for row in rows), itertools.cycle(SHAPES), strict=False))
    refuted = [row for row in rows if row.unsound]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        version=__version__,
        facts=[_fact(key, value) for key, value in manifest.items()],
        rows=len(rows),
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
        threat=lambda row: str(ThreatModel(row.norm, row.domain)),
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
        models.setdefault((row.norm, row.domain, row.model), []).append(row)
        pairs.setdefault((row.norm, row.domain, row.model, row.certifier, row.subject, row.guarantee), []).append(row)

    def drawn(s: Summary) -> Certifier:
        cycle, colour = divmod(order[s.certifier], COLOURS)
        smoothed = s.subject is Subject.SMOOTHED
        return Certifier(
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
                metrics.curve(pairs[(s.norm, s.domain, model, s.certifier, s.subject, s.guarantee)]) for s in chosen
            ]
            attack = metrics.attack_curve(models[(threat.p, threat.domain, model)])
            panels.append(_panel(model, [drawn(s) for s in chosen], steps, attack))
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
                captions=[note for note in notes if note.kind in (tables.Kind.UNSOUND, tables.Kind.CAPTION)],
                failures=[note for note in notes if note.kind is tables.Kind.FAILURE],
                unsupported=[note for note in notes if note.kind is tables.Kind.UNSUPPORTED],
                certifiers=sorted(certifiers, key=lambda c: (c.smoothed, order[c.name])),
                attacked=any(panel.attack for panel in panels),
                panels=panels,
                scatters=_scatters(threat.name, shown, drawn, shapes),
            )
        )
    return sections


def _panel(model: str, certifiers: Sequence[Certifier], steps: Sequence[Steps], attack: Steps) -> Panel:
    reach = max((_reach(curve) for curve in steps), default=0.0)
    # the attack's curve ends far out; what matters of it is the part above the certified curves
    top, marks = _axis(max(1.1 * reach, min(_reach(attack), 1.4 * reach)) or _reach(attack) or 1.0)
    return Panel(
        model=model,
        lines=[Line(certifier, _path(curve, top)) for certifier, curve in zip(certifiers, steps, strict=True)],
        attack=_path(attack, top) if attack else "",
        x_ticks=[Tick(CURVES.x(mark / top), f"{mark:.6g}") for mark in marks],
        y_ticks=[Tick(CURVES.y(share / 100), str(share)) for share in (0, 25, 50, 75, 100)],
    )


def _reach(steps: Steps) -> float:
    """The largest eps at which accuracy is still 2 %: a few inputs further out do not stretch the axis."""
    return max((eps for eps, accuracy in steps if accuracy >= 0.02 and eps < math.inf), default=0.0)


def _path(steps: Steps, top: float) -> str:
    """A step curve as an SVG path of whole units; steps closer than two units become one."""
    x, y = CURVES.left, round(CURVES.y(steps[0][1]))
    path = [f"M{x} {y}"]
    for eps, accuracy in steps[1:]:
        next_x = CURVES.right if eps >= top else 2 * round(CURVES.x(eps / top) / 2)
        next_y = round(CURVES.y(accuracy))
        if next_x == x:
            continue
        path.append((f"v{next_y - y}" if next_y != y else "") + f"h{next_x - x}")
        x, y = next_x, next_y
    if x < CURVES.right:
        path.append(f"V{CURVES.bottom}H{CURVES.right}")
    return "".join(path)


def _scatters(
    norm: str, shown: Iterable[Summary], drawn: Callable[[Summary], Certifier], shapes: Mapping[str, str]
) -> list[Scatter]:
    """Tightness against cost where counterexamples are known, mean radius against cost for the rest."""
    usable = [s for s in shown if s.answered and s.seconds > 0 and s.mean_radius < math.inf]
    if not usable:
        return []
    low = math.floor(math.log10(min(s.seconds for s in usable)))
    high = max(low + 1, math.ceil(math.log10(max(s.seconds for s in usable))))
    stride = 1 + (high - low) // 8
    x_ticks = [
        Tick(SCATTER.x((power - low) / (high - low)), f"{10.0**power:g}") for power in range(low, high + 1, stride)
    ]

    def plot(title: str, y_label: str, chosen: Sequence[tuple[Summary, float]], least: float) -> Scatter:
        top, marks = _axis(max([least, *(value for _, value in chosen)]) or 1.0)
        points = [
            Point(
                certifier=drawn(s),
                shape=shapes[s.model],
                x=round(SCATTER.x((math.log10(s.seconds) - low) / (high - low)), 1),
                y=round(SCATTER.y(value / top), 1),
                text=f"{tables.name(s)}: {_short(value)} at {tables.seconds(s.seconds)} s per input",
            )
            for s, value in chosen
        ]
        y_ticks = [Tick(SCATTER.y(mark / top), f"{mark:.6g}") for mark in marks]
        return Scatter(title, "seconds per input (logarithmic)", y_label, points, x_ticks, y_ticks)

    tight = [(s, s.tightness) for s in usable if s.tightness is not None]
    rest = [(s, s.mean_radius) for s in usable if s.tightness is None]
    base = [(s, radius) for s, radius in rest if s.subject is Subject.BASE]
    smoothed = [(s, radius) for s, radius in rest if s.subject is Subject.SMOOTHED]
    y_label = f"mean radius ({norm}, input units)"
    result = []
    if tight:
        result.append(plot("Tightness against cost", "mean of radius / distance of counterexample", tight, 1.0))
    if base:
        result.append(plot("Mean radius against cost: no counterexample known", y_label, base, 0.0))
    if smoothed:
        result.append(plot("Mean radius against cost: smoothed classifiers", y_label, smoothed, 0.0))
    return result


def _axis(top: float) -> tuple[float, list[float]]:
    """A round upper end for an axis that starts at 0 and reaches `top`, and up to seven marks on it."""
    power = 10.0 ** math.floor(math.log10(top / 6))
    step = next(factor * power for factor in (1, 2, 5, 10) if top / (factor * power) <= 6 + 1e-9)
    count = math.ceil(top / step - 1e-9)
    return count * step, [i * step for i in range(count + 1)]


def _fact(key: str, value: Any) -> tuple[str, str, bool]:
    """A line of the manifest: its name, its text, and whether the text is a block to unfold."""
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


def _short(value: float) -> str:
    return f"{value:.3g}"
