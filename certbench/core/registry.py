"""The one table of certifiers, ours and other packages', in which they are found by name."""

import ast
import difflib
import importlib
import importlib.util
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any, cast

from certbench.errors import ConfigError, MissingBackendError

GROUP = "certbench.verifiers"
"""Entry-point group: each entry leads to a dict like `certbench.verifiers.TABLE`."""

FORMER: Mapping[str, Mapping[str, Any]] = {
    "crown-lirpa": {"name": "crown", "engine": "auto-lirpa"},
    "alpha-crown-lirpa": {"name": "alpha-crown", "engine": "auto-lirpa"},
}
"""Former names of certifiers, as suites and stored runs have them, and what they mean now."""


@cache
def table() -> dict[str, str]:
    """Return every known certifier, name to `module:Class`, without importing a backend.

    Raises:
        ConfigError: two packages claim one name, or a package's table cannot be imported.
    """
    merged: dict[str, str] = {}
    for entry in entry_points(group=GROUP):
        try:
            entries = dict(entry.load())
        except Exception as error:
            raise ConfigError(f"the table of certifiers {entry.value} cannot be imported: {error}") from error
        for name, target in entries.items():
            if merged.setdefault(name, target) != target:
                raise ConfigError(f"certifier {name!r} is claimed twice: {merged[name]} and {target}")
    return merged


def find(name: str) -> type[Any]:
    """Return the certifier class of that name, or of that former name; this imports its module.

    Raises:
        ConfigError: no certifier has this name, or its line in the table leads nowhere.
        MissingBackendError: its package is not installed.
    """
    name = FORMER.get(name, {}).get("name", name)
    if name not in table():
        raise ConfigError(unknown("certifier", name, table()), ("name",))
    module, _, attribute = table()[name].partition(":")
    try:
        return cast("type[Any]", getattr(importlib.import_module(module), attribute))
    except MissingBackendError:
        raise
    except ImportError as error:
        raise MissingBackendError(f"certifier {name!r} needs a package that does not import: {error}") from error
    except AttributeError as error:
        raise ConfigError(f"certifier {name!r}: {error}", ("name",)) from error


def name_of(certifier: type[Any]) -> str:
    """Return the name under which a class stands in the table; `module:Class` if it stands in none."""
    target = f"{certifier.__module__}:{certifier.__qualname__}"
    return next((name for name, entry in table().items() if entry == target), target)


def summary(name: str) -> str:
    """Return the first line of the class's docstring, read from the source so that no backend is imported."""
    module, _, attribute = table()[name].partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        return "(not importable)"
    with open(spec.origin, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == attribute:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""


def unknown(kind: str, name: str, known: Any) -> str:
    """Write a message for a name that is not known, with the nearest ones."""
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(sorted(known))}"
