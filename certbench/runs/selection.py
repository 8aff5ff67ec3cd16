"""Changes of a suite by the command line: fewer inputs, some of its parts, other values; and sweeps over options."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import yaml

from certbench.core import registry
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError
from certbench.files.numbers import number
from certbench.files.yaml_lines import Lines
from certbench.models.cards import cards


@dataclass(frozen=True)
class Selection:
    """What a command line says about a suite.

    Attributes:
        inputs: number of inputs; None: the suite's.
        models: names of models, of the suite or of the zoo; empty: the suite's.
        certifiers: names of certifiers, of the suite or of the table; empty: the suite's.
        norms: norms; empty: the suite's.
        changes: `key=value` for each changed setting; a value is YAML. A key leads to the setting, as `attacks.steps`,
            or to an option of all certifiers of a name, as `certifiers.crown.engine`.
    """

    inputs: int | None = None
    models: Sequence[str] = ()
    certifiers: Sequence[str] = ()
    norms: Sequence[str] = ()
    changes: Sequence[str] = ()


def chosen(values: dict[str, Any], lines: Lines, selection: Selection) -> tuple[dict[str, Any], Lines]:
    """Return the values of a suite's file as a selection changes them, and their lines.

    Raises:
        ConfigError: a name is unknown, or a change is no `key=value`.
    """
    found, places = deepcopy(values), dict(lines)
    if selection.inputs is not None:
        found["inputs"] = selection.inputs
    for key, kind, names, known in (
        ("models", "model", selection.models, cards()),
        ("certifiers", "certifier", selection.certifiers, registry.table()),
    ):
        if names:
            kept = _picked(kind, found.get(key), names, known)
            found[key] = [part for _, part in kept]
            old = {line: at for line, at in places.items() if line[:1] == (key,) and len(line) > 1}
            places = {line: at for line, at in places.items() if line not in old}
            for new, (before, _) in enumerate(kept):
                inside = {line: at for line, at in old.items() if line[1] == str(before)}
                places |= {(key, str(new), *line[2:]): at for line, at in inside.items()}
    if selection.norms:
        found["norms"] = [ThreatModel.of(norm).p for norm in selection.norms]
        found["radii"] = _of_norms(found.get("radii", {}), found["norms"])
        clever = found.get("clever")
        if isinstance(clever, dict):
            clever["radius"] = _of_norms(clever.get("radius"), found["norms"])
            found["clever"] = clever if clever["radius"] else None
    for change in selection.changes:
        key, equals, text = change.partition("=")
        if not (key and equals):
            raise ConfigError(f"--set {change!r}: write key=value, as attacks.steps=0 or certifiers.crown.engine=own")
        try:
            _change(found, key.split("."), yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {change!r}: the value is not valid YAML") from error
    return found, places


def _of_norms(numbers: Any, norms: list[float]) -> Any:
    """Leave out what is said of other norms; what is no norm stays, and is refused later."""

    def wanted(p: Any) -> bool:
        try:
            return number(p) in norms
        except ValueError:
            return True

    return {p: value for p, value in numbers.items() if wanted(p)} if isinstance(numbers, dict) else numbers


def _picked(kind: str, parts: Any, names: Sequence[str], known: Mapping[str, Any]) -> list[tuple[int, Any]]:
    """Return the parts with these names, each with its place; a name of the table that no part has is added."""
    kept: list[tuple[int, Any]] = []
    listed = parts if isinstance(parts, list) else []
    for name in names:
        of_name = [(i, part) for i, part in enumerate(listed) if _name(part) == name]
        if not of_name and name not in known:
            raise ConfigError(registry.unknown(kind, name, {*known, *(_name(part) for part in listed)}))
        kept += of_name or [(-1, name)]
    return kept


def _name(part: Any) -> str:
    return str(part.get("name", "")) if isinstance(part, dict) else str(part)


def _change(values: dict[str, Any], path: list[str], value: Any) -> None:
    if path[0] == "certifiers" and len(path) > 2:
        parts = values.get("certifiers")
        parts = parts if isinstance(parts, list) else []
        places = [i for i, part in enumerate(parts) if _name(part) == path[1]]
        if not places:
            raise ConfigError(f"--set {'.'.join(path)}: the suite has no certifier {path[1]!r}")
        for i in places:
            parts[i] = {"name": parts[i]} if isinstance(parts[i], str) else parts[i]
            assign(parts[i], path[2:], value)
    else:
        assign(values, path, value)


def assign(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set a value inside nested mappings; a name on the way, of a noise say, becomes a mapping with that name.

    Raises:
        ConfigError: something on the way is neither.
    """
    for key in path[:-1]:
        inner = values.get(key)
        if inner is None or isinstance(inner, str):
            inner = {} if inner is None else {"name": inner}
        if not isinstance(inner, dict):
            raise ConfigError(f"{'.'.join(path)}: {key} is no mapping")
        values[key] = inner = dict(inner)
        values = inner
    values[path[-1]] = value


def swept(specs: Sequence[Any], located: Callable[[int, Callable[[], Any]], Any]) -> Iterator[tuple[int, Any]]:
    """Write each certifier with a `matrix` as one for each combination of its values; the others stay.

    Args:
        specs: the entries of a suite.
        located: function that calls another for an entry, and names its place in errors.

    Yields:
        The place of the entry, and a specification without a matrix.
    """
    for i, spec in enumerate(specs):
        if isinstance(spec, dict) and "matrix" in spec:
            for one in located(i, partial(_products, spec)):
                yield i, one
        else:
            yield i, spec


def _products(spec: dict[str, Any]) -> list[dict[str, Any]]:
    matrix, found = spec["matrix"], []
    good = isinstance(matrix, dict) and matrix and all(isinstance(part, list) and part for part in matrix.values())
    if not good:
        raise ConfigError("a matrix has a list of values for each option, as {sigma: [0.25, 0.5]}", ("matrix",))
    for values in itertools.product(*matrix.values()):
        one = deepcopy({key: value for key, value in spec.items() if key != "matrix"})
        for key, value in zip(matrix, values, strict=True):
            assign(one, str(key).split("."), value)
        found.append(one)
    return found
