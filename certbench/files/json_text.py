"""JSON text that every reader understands."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

DEEPEST = 100
"""Maximum depth of nesting: far above what is written, and far below what ends a recursive function."""


def parse(text: str) -> Any:
    """Read JSON that others may have written.

    Raises:
        ValueError: the text is no JSON, or is nested deeper than `DEEPEST` levels.
    """
    deep = f"it is nested deeper than {DEEPEST} levels"
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(deep) from None
    if text.count("[") + text.count("{") > DEEPEST:
        level = [value]
        for _ in range(DEEPEST + 1):
            level = [part for one in level if isinstance(one, dict | list) for part in _parts(one)]
        if level:
            raise ValueError(deep)
    return value


def _parts(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def plain(value: Any) -> Any:
    """Replace infinities by text, so that the value can be written as standard JSON."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def clean(value: Any) -> Any:
    """Return a JSON value in whose texts nothing is left that no file can take: lone surrogates, and NUL.

    Raises:
        TypeError: the value, or a part of it, is no JSON value.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [clean(part) for part in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    raise TypeError(f"an object of type {type(value).__name__} is no JSON value")
