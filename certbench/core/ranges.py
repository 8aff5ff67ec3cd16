"""Ranges of options: written beside the type of an option, checked when it is given, shown by `certbench show`.

    @dataclass(frozen=True)
    class Mine(Certifier[State]):
        seconds: Seconds = 60.0
        steps: Annotated[int, at_least(1)] = 20
        share: Annotated[float, between(0, 1, inclusive="left")] | None = None
        solver: Annotated[str, one_of("scs", "clarabel")] = "scs"

`Annotated`, `Literal`, `X | None`, `tuple[X, ...]` and `tuple[X, Y]` are understood, also nested. A range is
about the value, not its type: `build` reads types. No range contains NaN.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from certbench.errors import ConfigError

Inclusive = Literal["both", "left", "right", "neither"]
"""Ends that belong to an interval, in the words of pandas."""


@dataclass(frozen=True)
class Range:
    """An interval of numbers.

    Attributes:
        low: lower end.
        high: upper end. Infinity that does not belong to the interval allows every finite number.
        inclusive: the ends that belong to the interval.
        note: reason, or meaning of the option; messages end with it.
    """

    low: float
    high: float
    inclusive: Inclusive = "both"
    note: str = ""

    def __contains__(self, value: Any) -> bool:
        above = self.low <= value if self.inclusive in ("both", "left") else self.low < value
        below = value <= self.high if self.inclusive in ("both", "right") else value < self.high
        return bool(above and below)

    def words(self) -> list[str]:
        """Return the conditions, in words."""
        low, high = (str(end) if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high))
        if self.inclusive == "both" and self.high < math.inf:
            return [f"from {low} to {high}"]
        if self.inclusive == "neither" and self.high < math.inf:
            return [f"strictly between {low} and {high}"]
        words = [f"at least {low}" if self.inclusive in ("both", "left") else f"above {low}"]
        if self.high == math.inf:
            return words if self.inclusive in ("both", "right") else [*words, "finite"]
        return [*words, f"at most {high}" if self.inclusive == "right" else f"below {high}"]


@dataclass(frozen=True)
class OneOf:
    """A few values.

    Attributes:
        choices: the values.
        note: reason, or meaning of the option; messages end with it.
    """

    choices: tuple[Any, ...]
    note: str = ""

    def __contains__(self, value: Any) -> bool:
        return value in self.choices

    def words(self) -> list[str]:
        """Return the choices, in words."""
        listed = ", ".join(str(choice) for choice in self.choices)
        return [listed if len(self.choices) == 1 else f"one of {listed}"]


def at_least(low: float, note: str = "") -> Range:
    """Allow `low` and every larger number."""
    return Range(low, math.inf, "both", note)


def above(low: float, note: str = "") -> Range:
    """Allow every finite number larger than `low`."""
    return Range(low, math.inf, "neither", note)


def between(low: float, high: float, inclusive: Inclusive = "both", note: str = "") -> Range:
    """Allow the numbers between two, and the ends that `inclusive` names."""
    return Range(low, high, inclusive, note)


def one_of(*choices: Any, note: str = "") -> OneOf:
    """Allow these values."""
    return OneOf(choices, note)


PositiveFloat = Annotated[float, above(0)]
PositiveInt = Annotated[int, at_least(1)]
NonNegativeInt = Annotated[int, at_least(0)]

Seconds = PositiveFloat
Sigma = PositiveFloat
"""Standard deviation of a noise."""
Seed = Annotated[int, at_least(0, note="it is a seed")]
BatchSize = PositiveInt
Alpha = Annotated[float, between(0, 1, "neither")]
"""Probability that a certificate is wrong."""
RelativeTolerance = Annotated[float, between(0, 1, "neither")]


class Options:
    """Base of the frozen dataclasses whose fields are options: certifiers, noises, searches."""

    def __post_init__(self) -> None:
        """Refuse options outside their ranges. A class that has a `__post_init__` of its own calls this one first."""
        cls: Any = type(self)
        for name, hint in annotations(cls).items():
            for path, message in _violations(getattr(self, name), hint, (name,)):
                raise ConfigError(message, path)
        self.check_together()

    def check_together(self) -> None:
        """Refuse options that do not go together; each one is in its range."""


@cache
def annotations(cls: Any) -> Mapping[str, Any]:
    """Return the type of each option with its range.

    If an annotation uses a name that only a type checker knows, annotations that are text have no range; `build` cannot
    read such a class either.
    """
    fields = dataclasses.fields(cls)
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError):
        hints = {field.name: field.type for field in fields if not isinstance(field.type, str)}
    return {field.name: hints[field.name] for field in fields if field.name in hints}


def allowed(hint: Any) -> list[Range | OneOf]:
    """Return the ranges that a type states for the value itself, not for parts of it."""
    if typing.get_origin(hint) is Annotated:
        return [part for part in hint.__metadata__ if isinstance(part, Range | OneOf)]
    return [OneOf(typing.get_args(hint))] if typing.get_origin(hint) is Literal else []


def without_none(hint: Any) -> tuple[Any, bool]:
    """Split `X | None` into X and whether None is allowed; other types stay as they are."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False
    parts = [part for part in typing.get_args(hint) if part is not types.NoneType]
    return (parts[0], True) if len(parts) == 1 else (hint, False)


def _violations(value: Any, hint: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    hint, optional = without_none(hint)
    if optional and value is None:
        return
    for part in allowed(hint):
        if value not in part:
            name = f"{path[0]}{''.join(f'[{index}]' for index in path[1:])}"
            words = " and ".join(part.words()) + (", or left out" if optional else "")
            given = repr(value) if isinstance(value, str) else str(value)
            yield path, f"{name} must be {words}, not {given}" + (f": {part.note}" if part.note else "")
    if typing.get_origin(hint) is Annotated:
        yield from _violations(value, hint.__origin__, path)
    elif typing.get_origin(hint) is tuple and isinstance(value, Collection) and not isinstance(value, str):
        parts = typing.get_args(hint)
        if parts[1:] == (Ellipsis,):
            parts = parts[:1] * len(value)
        for i, (element, part) in enumerate(zip(value, parts, strict=False)):
            yield from _violations(element, part, (*path, i))
