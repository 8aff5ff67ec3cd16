"""JSON text that every reader understands."""

import math
from collections.abc import Mapping
from typing import Any


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
