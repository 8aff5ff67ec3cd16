"""Rows and estimates as SQLite has them, read strictly."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from certbench.core.claims import ABSTAIN, Guarantee, Outcome, Subject
from certbench.core.threat import Domain, Numbers, read
from certbench.errors import ConfigError
from certbench.files.json_text import parse
from certbench.results.rows import Estimate, Row

_T = TypeVar("_T")


class Boxes:
    """Domains and scales, each read once."""

    def __init__(self, contents: Mapping[str, str]) -> None:
        """Take the contents by name."""
        self.contents = contents
        self.known: dict[str, tuple[Domain | None, Numbers | None]] = {}

    def __getitem__(self, text: str) -> tuple[Domain | None, Numbers | None]:
        """Return the domain and the scales of a cell: a name, or the content itself."""
        if text not in self.known:
            value = parse(text)
            try:
                self.known[text] = read(parse(self.contents[value]) if isinstance(value, str) else value)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return self.known[text]


def named(make: Callable[[Sequence[Any], Boxes], _T], values: Sequence[Any], boxes: Boxes) -> _T:
    """Read a row of the file; ValueError if no version of certbench writes such a row."""
    try:
        return make(values, boxes)
    except (TypeError, LookupError, AttributeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"the row {', '.join(map(str, values[:2]))} is no row of a run: {error}") from error


def row_of(values: Sequence[Any], boxes: Boxes) -> Row:
    """Return a row of the query of `Store.keyed_rows`, without its keys."""
    (model, certifier, spec, guarantee, subject, norm, domain, index, label) = values[:9]
    (prediction, radius, upper, seconds, prepare, outcome, reason, evidence, cpu, distance) = values[9:]
    known = [upper] if distance is None or subject != Subject.BASE.value else [upper, distance]
    options, found = parse(spec), parse(evidence)
    for part, kind in ((model, str), (certifier, str), (reason, str), (options, dict), (found, dict)):
        _check(part, kind)
    for part in (index, label, prediction):
        _check(part, int)
    for part in (norm, radius, seconds, prepare, *known, *(() if cpu is None else (cpu,))):
        _check_number(part)
    if index < 0 or label < 0 or prediction < ABSTAIN:
        raise ValueError(f"input {index}, label {label} and class {prediction} cannot be")
    box, scale = boxes[domain]
    return Row(
        model=model,
        certifier=certifier,
        spec=options,
        guarantee=Guarantee(guarantee),
        subject=Subject(subject),
        norm=norm,
        domain=box,
        scale=scale,
        input=index,
        label=label,
        prediction=prediction,
        radius=radius,
        upper=min(known),
        seconds=seconds,
        prepare_seconds=prepare,
        cpu_seconds=cpu,
        outcome=Outcome(outcome),
        reason=reason,
        evidence=found,
    )


def estimate_of(values: Sequence[Any], boxes: Boxes) -> Estimate:
    """Return a row of the query of `Store.estimates`."""
    model, method, norm, domain, index, value, cap, upper = values
    for part, kind in ((model, str), (method, str), (index, int)):
        _check(part, kind)
    for part in (norm, cap, *(part for part in (value, upper) if part is not None)):
        _check_number(part)
    box, scale = boxes[domain]
    return Estimate(
        model=model,
        method=method,
        norm=norm,
        domain=box,
        scale=scale,
        input=index,
        value=math.nan if value is None else value,  # SQLite has no NaN
        cap=cap,
        upper=math.inf if upper is None else upper,
    )


def _check_number(value: Any) -> None:
    _check(value, (int, float))
    if not value >= 0:  # NaN, too
        raise ValueError(f"{value} is below 0")


def _check(value: Any, kind: type | tuple[type, ...]) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{str(value)[:100]!r} is of type {type(value).__name__}")
