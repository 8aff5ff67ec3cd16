"""Options of certifiers: `build` makes a certifier from a specification, `describe` is its inverse."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from certbench.core import ranges, registry
from certbench.core.certifier import Certifier
from certbench.core.search import SEARCHES, RadiusSearch
from certbench.errors import ConfigError
from certbench.files.numbers import Number, Whole

Spec = str | Mapping[str, Any]
"""Specification of a certifier: `"crown"`, or `{"name": "crown", "search": {"name": "ladder", "eps": [0.1]}}`."""

Path = tuple[str | int, ...]

FAMILIES: dict[type[Any], Mapping[str, type[Any]]] = {RadiusSearch: SEARCHES}
"""Types of options that are chosen by name, each with its choices. `family` adds one."""


def family(kind: type[Any], choices: Mapping[str, type[Any]]) -> None:
    """Let options of a type be chosen by name; the package that defines the type calls this once, at import."""
    FAMILIES[kind] = choices


def build(spec: Spec) -> Certifier[Any]:
    """Make the certifier that a specification describes.

    Raises:
        ConfigError: a name or an option is unknown, or no run could use a value; `path` leads to it.
        MissingBackendError: the certifier's package is not installed.
    """
    name, given = _named(spec, ())
    built = _fill(registry.find(name), given, ())
    assert isinstance(built, Certifier)
    return built


def describe(certifier: Certifier[Any]) -> dict[str, Any]:
    """Return the name and every option, defaults included, JSON-able; `build(describe(c)) == c`."""
    return {"name": registry.name_of(type(certifier)), **_fields(certifier)}


def versions(certifier: Certifier[Any]) -> int | list[Any]:
    """Return its version and, if it is made of other certifiers, theirs: stored answers depend on them."""
    members: list[Certifier[Any]] = []
    for field in dataclasses.fields(certifier):  # type: ignore[arg-type]
        value = getattr(certifier, field.name)
        members += [part for part in (value if isinstance(value, tuple) else (value,)) if isinstance(part, Certifier)]
    return [certifier.version, *(versions(member) for member in members)] if members else certifier.version


def choose(family: type[Any], spec: object, path: Path = ()) -> Any:
    """Make the member of a family of `FAMILIES` that a specification describes.

    Raises:
        ConfigError: as `build`.
    """
    return _value(family, spec, path)


def label(certifier: Certifier[Any], usual: Mapping[str, Any] | None = None) -> str:
    """Return the name and the options that differ from `usual`, or else from their defaults, as tables print it."""
    return _labelled(registry.name_of(type(certifier)), certifier, usual or {})


def describe_options(cls: Any) -> list[tuple[str, str, str]]:
    """Return the name of each option, the values that it takes, and its default, in words.

    The options of members of a family, which are chosen by name, follow indented.
    """
    hints, rows = ranges.annotations(cls), []
    for field in dataclasses.fields(cls):
        hint = hints.get(field.name, field.type)
        rows.append((field.name, _words(hint), _default_text(field)))
        for name, choice in _choices(hint).items():
            rows += [(f"  {name}.{option}", words, default) for option, words, default in describe_options(choice)]
    return rows


def _named(spec: object, path: Path) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        spec = {"name": spec}
    if isinstance(spec, Mapping) and isinstance(spec.get("name"), str):
        now = registry.FORMER.get(spec["name"])
        if now is not None:  # their `layers` was true or false
            spec = {key: int(value) if isinstance(value, bool) else value for key, value in spec.items()} | dict(now)
        return spec["name"], {str(key): value for key, value in spec.items() if key != "name"}
    raise ConfigError("write a name, or a mapping with a `name` and options", path)


def _fill(cls: type[Any], given: Mapping[str, Any], path: Path) -> Any:
    hints = typing.get_type_hints(cls)
    known = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    for key in given:
        if key not in known:
            raise ConfigError(registry.unknown("option", key, known), (*path, key))
    values = {key: _value(known[key], value, (*path, key)) for key, value in given.items()}
    missing = [
        field.name for field in dataclasses.fields(cls) if _default(field) is _REQUIRED and field.name not in values
    ]
    if missing:
        raise ConfigError(f"{cls.__name__} needs the option {missing[0]!r}", path)
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(str(error), (*path, *error.path)) from error


def _value(hint: Any, value: Any, path: Path) -> Any:
    if hint in FAMILIES:
        if isinstance(value, hint):
            return value  # built by hand, in Python
        name, given = _named(value, path)
        if name not in FAMILIES[hint]:
            raise ConfigError(registry.unknown(str(path[-1]) if path else "choice", name, FAMILIES[hint]), path)
        return _fill(FAMILIES[hint][name], given, path)
    if typing.get_origin(hint) is Certifier or hint is Certifier:
        if isinstance(value, Certifier):
            return value
        name, given = _named(value, path)
        return _fill(registry.find(name), given, path)
    if hint == tuple[Certifier[Any], ...]:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError("write a list of certifiers", path)
        return tuple(_value(Certifier, part, (*path, i)) for i, part in enumerate(value))
    try:
        return TypeAdapter(_readable(hint)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(message, (*path, *(part for part in first["loc"] if isinstance(part, int)))) from error


def _readable(hint: Any) -> Any:
    """Return the hint with every float and int replaced by a type that reads numbers as people write them."""
    if hint is float:
        return Number
    if hint is int:
        return Whole
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return tuple[tuple(_readable(part) for part in arguments)]  # type: ignore[misc]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.Union[tuple(_readable(part) for part in arguments)]  # noqa: UP007
    return hint


def _choices(hint: Any) -> Mapping[str, type[Any]]:
    """Return the members that may be chosen by name for an option of this type; none for types that are no family."""
    return next((choices for kind, choices in FAMILIES.items() if kind is hint), {})  # a hint may have no hash


def _words(hint: Any) -> str:
    """Say in words which values an option of this type takes."""
    hint, optional = ranges.without_none(hint)
    if optional:
        return f"{_words(hint)}, or null"
    if _choices(hint):
        return f"one of {', '.join(_choices(hint))}"
    if typing.get_origin(hint) is Certifier or hint is Certifier:
        return "a certifier"
    choices = [part for part in ranges.allowed(hint) if isinstance(part, ranges.OneOf)]
    if choices:
        return ", ".join(choices[0].words())
    if typing.get_origin(hint) is Annotated:
        return ", ".join([_words(hint.__origin__), *(word for part in ranges.allowed(hint) for word in part.words())])
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        return f"list of: {_words(parts[0])}" if parts[-1] is Ellipsis else f"[{'; '.join(map(_words, parts))}]"
    return PLAIN.get(hint, getattr(hint, "__name__", str(hint)))


PLAIN: Mapping[Any, str] = {int: "whole number", float: "number", bool: "true or false", str: "text"}
"""Types of options in plain words."""

_REQUIRED = object()


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else _REQUIRED


def _default_text(field: "dataclasses.Field[Any]") -> str:
    default = _default(field)
    if default is _REQUIRED:
        return "required"
    short = _shortest(default)
    return short if isinstance(short, str) else json.dumps(short, default=str)


def _shortest(value: Any) -> Any:
    """Return the shortest specification of an option: defaults are left out, and a name alone is no mapping."""
    name = _name(value)
    if name is not None:
        fields = dataclasses.fields(value)
        given = {field.name: getattr(value, field.name) for field in fields}
        changed = {field.name: _shortest(given[field.name]) for field in fields if given[field.name] != _default(field)}
        return {"name": name, **changed} if changed else name
    if isinstance(value, tuple | list):
        return [_shortest(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else _plain(value)


def _name(value: Any) -> str | None:
    """Return the name of a certifier, or of a member of a family; None for other values."""
    if isinstance(value, Certifier):
        return registry.name_of(type(value))
    names = (name for family in FAMILIES.values() for name, choice in family.items() if type(value) is choice)
    return next(names, None)


def _fields(options: Any) -> dict[str, Any]:
    return {field.name: _plain(getattr(options, field.name)) for field in dataclasses.fields(options)}


def _plain(value: Any) -> Any:
    name = _name(value)
    if name is not None:
        return {"name": name, **_fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def _labelled(name: str, value: Any, usual: Mapping[str, Any]) -> str:
    changed = [
        f"{field.name}={_short(getattr(value, field.name))}"
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != usual.get(field.name, _default(field))
    ]
    return name + (f"({', '.join(changed)})" if changed else "")


def _short(value: Any) -> str:
    name = _name(value)
    if name is not None:
        return _labelled(name, value, {})
    if isinstance(value, tuple):
        return "+".join(_short(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
