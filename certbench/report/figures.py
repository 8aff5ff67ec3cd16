"""Figures as data: curves of certified accuracy, and radius against time."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from certbench.core.claims import Subject
from certbench.report import tables
from certbench.results.metrics import Steps, Summary

COLOURS = 8
"""Number of colours of the template. A ninth certifier takes the first one again, with thinner, dotted lines."""


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


@dataclass(frozen=True)
class Frame:
    """The position of a plot's axes, in SVG units."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    def x(self, share: float) -> float:
        """Return the position of a share of the x axis."""
        return self.left + share * (self.right - self.left)

    def y(self, share: float) -> float:
        """Return the position of a share of the y axis."""
        return self.bottom - share * (self.bottom - self.top)


CURVES = Frame(600, 420, 92, 588, 16, 340)


SCATTER = Frame(640, 390, 64, 628, 14, 336)


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Drawn:
    """The drawing style of a certifier, the same in every plot."""

    name: str
    smoothed: bool
    css: str


@dataclass(frozen=True)
class Line:
    """One certified-accuracy curve."""

    certifier: Drawn
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

    certifier: Drawn
    shape: str
    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Scatter:
    """A scatter plot of how much is proved against what it costs."""

    title: str
    x_label: str
    y_label: str
    points: list[Point]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def panel(model: str, certifiers: Sequence[Drawn], steps: Sequence[Steps], attack: Steps) -> Panel:
    """Draw the curves of a model."""
    reach = max((_reach(curve) for curve in steps), default=0.0)
    # the attack's curve ends far out; only its part above the certified curves matters
    top, marks = _axis(max(1.1 * reach, min(_reach(attack), 1.4 * reach)) or _reach(attack) or 1.0)
    return Panel(
        model=model,
        lines=[Line(certifier, _path(curve, top)) for certifier, curve in zip(certifiers, steps, strict=True)],
        attack=_path(attack, top) if attack else "",
        x_ticks=[Tick(CURVES.x(mark / top), f"{mark:.6g}") for mark in marks],
        y_ticks=[Tick(CURVES.y(share / 100), str(share)) for share in (0, 25, 50, 75, 100)],
    )


def _reach(steps: Steps) -> float:
    """Return the largest eps with accuracy of at least 2 %: a few inputs further out must not stretch the axis."""
    return max((eps for eps, accuracy in steps if accuracy >= 0.02 and eps < math.inf), default=0.0)


def _path(steps: Steps, top: float) -> str:
    """Write a step curve as an SVG path in whole units; steps closer than two units become one."""
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


def scatters(
    units: str, shown: Iterable[Summary], drawn: Callable[[Summary], Drawn], shapes: Mapping[str, str]
) -> list[Scatter]:
    """Draw tightness against cost where counterexamples are known, and mean radius against cost for the rest."""
    usable = [s for s in shown if s.answered and s.seconds > 0]
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
                text=f"{tables.name(s)}: {short(value)} at {tables.seconds(s.seconds)} s per input",
            )
            for s, value in chosen
        ]
        y_ticks = [Tick(SCATTER.y(mark / top), f"{mark:.6g}") for mark in marks]
        return Scatter(title, "seconds per input (logarithmic)", y_label, points, x_ticks, y_ticks)

    tight = [(s, s.tightness) for s in usable if s.tightness is not None]
    rest = [(s, s.mean_radius) for s in usable if s.tightness is None and s.mean_radius is not None]
    base = [(s, radius) for s, radius in rest if s.subject is Subject.BASE]
    smoothed = [(s, radius) for s, radius in rest if s.subject is Subject.SMOOTHED]
    y_label = f"mean radius ({units})"
    result = []
    if tight:
        result.append(plot("Tightness against cost", "mean of radius / distance of counterexample", tight, 1.0))
    if base:
        result.append(plot("Mean radius against cost: no counterexample known", y_label, base, 0.0))
    if smoothed:
        result.append(plot("Mean radius against cost: smoothed classifiers", y_label, smoothed, 0.0))
    return result


def _axis(top: float) -> tuple[float, list[float]]:
    """Choose a round upper end for an axis that starts at 0 and reaches `top`, and up to seven marks on it."""
    power = 10.0 ** math.floor(math.log10(top / 6))
    step = next(factor * power for factor in (1, 2, 5, 10) if top / (factor * power) <= 6 + 1e-9)
    count = math.ceil(top / step - 1e-9)
    return count * step, [i * step for i in range(count + 1)]


def short(value: float) -> str:
    """Write a number with three digits."""
    return f"{value:.3g}"
