"""Policies of `certbench compare`: which differences between two runs fail, per certifier. Imports nothing heavy.

A YAML file; everything may be left out:

    significance: 0.01                                # for all tests on smoothing together
    tolerance: {absolute: 3e-5, relative: 7e-4}       # two radii this close are the same but for rounding
    classes:
      lost: {at_most: 2}
      looser: {more_than: 0.01, at_most: 0}           # only what shrank by more than 1 % counts, and none may
      tighter: ignore
    timing: {at_most: 1.25}                           # ratio of pytest-benchmark's medians, new / old
    certifiers:
      "milp*":                                        # the first pattern that fits a certifier's name or label holds;
        tolerance: {relative: 1e-3}                   # keys that it leaves out are as above
        classes: {looser: warn}
"""

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from certbench.comparison.classes import ROUNDING, WRONG, Kind, Tolerance
from certbench.errors import ConfigError
from certbench.files.reading import read_text

Action = Literal["fail", "warn", "ignore"]


@dataclass(frozen=True)
class Rule:
    """The rule for a class: more than `at_most` rows that changed by a share above `more_than` bring the action."""

    action: Action
    more_than: float = 0.0
    at_most: int = 0


DEFAULTS: Mapping[Kind, Rule] = {
    **{kind: Rule("fail") for kind in (Kind.NON_FINITE, Kind.UNSOUND, Kind.LOST, Kind.LOOSER, Kind.MISSING)},
    **{kind: Rule("fail") for kind in (Kind.LABEL_FLIP, Kind.INCOMPARABLE)},
    **{kind: Rule("ignore") for kind in (Kind.SAME, Kind.NOISE, Kind.GAINED, Kind.NEW)},
    Kind.TIGHTER: Rule("warn"),  # suspicious if the method did not change
}


@dataclass(frozen=True)
class Terms:
    """The tolerance and the rules for the certifiers that a pattern fits."""

    pattern: str = "*"
    tolerance: Tolerance = ROUNDING
    rules: Mapping[Kind, Rule] = field(default_factory=lambda: DEFAULTS)

    def fits(self, label: str, name: str) -> bool:
        """Say whether the pattern fits a certifier, by its label with options or by its name alone."""
        return any(fnmatch.fnmatchcase(text, self.pattern) for text in (label, name))


@dataclass(frozen=True)
class Policy:
    """Terms by pattern, in the file's order, and terms for the rest.

    Attributes:
        rest: terms for certifiers that no pattern fits.
        patterns: terms for the others.
        significance: probability, over all tests on smoothing together, that an unchanged method is called changed.
        slower: largest allowed ratio of pytest-benchmark's medians, new to old.
    """

    rest: Terms = Terms()
    patterns: tuple[Terms, ...] = ()
    significance: float = 0.01
    slower: float = 1.25

    def of(self, label: str, name: str) -> Terms:
        """Return the terms for a certifier, by its label with options or by its name alone."""
        return next((terms for terms in self.patterns if terms.fits(label, name)), self.rest)


def load(path: Path) -> Policy:
    """Read a policy.

    Raises:
        ConfigError: the file cannot be read, or a value is not understood; the message names file, line and key.
    """
    from certbench.files import yaml_lines

    values, lines = yaml_lines.read(read_text(path, "the policy"), path)
    try:
        return _policy({} if values is None else values)
    except ConfigError as error:
        raise ConfigError(yaml_lines.at(path, lines, error.path, str(error)), error.path) from error


def _policy(values: Any) -> Policy:
    given = _mapping(values, (), ("significance", "tolerance", "classes", "timing", "certifiers"))
    significance = _number(given, "significance", (), 0.01)
    if not 0 < significance < 1:
        raise ConfigError(f"write a significance between 0 and 1, not {significance:g}", ("significance",))
    rest = _terms("*", {key: given[key] for key in ("tolerance", "classes") if key in given}, (), Terms())
    timing = _mapping(given.get("timing", {}), ("timing",), ("at_most",))
    patterns = _mapping(given.get("certifiers", {}), ("certifiers",), None)
    return Policy(
        rest=rest,
        patterns=tuple(_terms(pattern, part, ("certifiers", pattern), rest) for pattern, part in patterns.items()),
        significance=significance,
        slower=_number(timing, "at_most", ("timing",), 1.25),
    )


def _terms(pattern: str, values: Any, where: tuple[str, ...], rest: Terms) -> Terms:
    given = _mapping(values, where, ("tolerance", "classes"))
    there = (*where, "tolerance")
    numbers = _mapping(given.get("tolerance", {}), there, ("absolute", "relative"))
    tolerance = Tolerance(
        _number(numbers, "absolute", there, rest.tolerance.absolute),
        _share(numbers, "relative", there, rest.tolerance.relative),
    )
    classes = _mapping(given.get("classes", {}), (*where, "classes"), tuple(kind.value for kind in Kind))
    rules = {Kind(name): _rule(Kind(name), value, (*where, "classes", name)) for name, value in classes.items()}
    return replace(rest, pattern=pattern, tolerance=tolerance, rules={**rest.rules, **rules})


def _rule(kind: Kind, value: Any, where: tuple[str, ...]) -> Rule:
    if kind in WRONG and value != "fail":
        raise ConfigError(f"{kind.value} rows always fail; name single rows in a file of known issues instead", where)
    if isinstance(value, Mapping):
        sized = kind in (Kind.LOOSER, Kind.TIGHTER)
        given = _mapping(value, where, ("more_than", "at_most", "action") if sized else ("at_most", "action"))
        at_most = given.get("at_most", 0)
        if not isinstance(at_most, int) or isinstance(at_most, bool) or at_most < 0:
            raise ConfigError(f"write a whole number of rows, at least 0, not {at_most!r}", (*where, "at_most"))
        action = _action(given.get("action", "fail"), (*where, "action"))
        return Rule(action, _share(given, "more_than", where, 0.0), at_most)
    return Rule(_action(value, where))


def _action(value: Any, where: tuple[str, ...]) -> Action:
    for action in get_args(Action):
        if value == action:
            return action  # type: ignore[no-any-return]
    raise ConfigError(f"write {', '.join(get_args(Action))}, or a mapping with at_most, not {value!r}", where)


def _mapping(value: Any, where: tuple[str, ...], known: tuple[str, ...] | None) -> Mapping[str, Any]:
    from certbench.core import registry

    if not isinstance(value, Mapping):
        raise ConfigError(f"write a mapping, not {value!r}", where)
    for key in value:
        if not isinstance(key, str) or (known is not None and key not in known):
            raise ConfigError(registry.unknown("key", str(key), known or ()), (*where, str(key)))
    return value


def _number(values: Mapping[str, Any], key: str, where: tuple[str, ...], default: float) -> float:
    value = values.get(key, default)
    try:  # YAML 1.1 reads 1e-3 as text
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ConfigError(f"write a number, at least 0, not {value!r}", (*where, key))
    return number


def _share(values: Mapping[str, Any], key: str, where: tuple[str, ...], default: float) -> float:
    number = _number(values, key, where, default)
    if number >= 1:
        raise ConfigError(f"write a share of the radius, below 1 (0.05 is 5 %), not {values[key]!r}", (*where, key))
    return number
