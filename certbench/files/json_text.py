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
