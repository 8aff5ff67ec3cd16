"""Numbers as people write them: 3, 0.1, 1e-3, 8/255, inf."""

import math
import re
from fractions import Fraction
from typing import Annotated

from pydantic import BeforeValidator

DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]([+-]?[0-9]+))?")
"""Pattern of a decimal number: no inf, no nan, no underscores, no digits of other scripts, no spaces.

Its group is the exponent."""


def number(value: object) -> float:
    """Read a number as people write it: 3, 0.1, 1e-3, "8/255", "inf"; never NaN, never True.

    Text is accepted, because YAML reads `1e-3` and `8/255` as text.

    Raises:
        ValueError: the value is no number; the message says what to write.
    """
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a number (YAML reads yes, no, on and off as true and false)")
    try:
        fraction = isinstance(value, str) and "/" in value
        result = float(Fraction(str(value).replace(" ", "")) if fraction else value)  # type: ignore[arg-type]
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        kind = "text" if isinstance(value, str) else type(value).__name__
        raise ValueError(f"{value!r} is {kind}, not a number; write it like 0.1, 1e-3, 8/255 or inf") from None
    if math.isnan(result):
        raise ValueError("NaN is not a number that a run could use")
    return result


def is_number(text: str) -> bool:
    """Say whether a cell of a table is a number in ASCII digits, inf and nan among them; see `is_decimal`.

    `1_000` is none, which Python alone reads.
    """
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii() and "_" not in text


def decimal(text: str) -> float:
    """Read a finite decimal number as programs write it: 3, -.5, 1e-3; nothing else that Python would take.

    Raises:
        ValueError: the text is none, or the number is too large for float64.
    """
    value = float(text) if DECIMAL.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is no finite number")
    return value


def is_decimal(text: str) -> bool:
    """Say whether a text is a finite decimal number, as `decimal` reads it."""
    try:
        decimal(text)
    except ValueError:
        return False
    return True


def whole(value: object) -> int:
    """Read a whole number; `1e5` is one.

    Raises:
        ValueError: the value is no whole number.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value  # a conversion to float would round large ones
    result = number(value)
    if not result.is_integer():
        raise ValueError(f"{value!r} is not a whole number")
    return int(result)


Number = Annotated[float, BeforeValidator(number, json_schema_input_type=float | str)]


Whole = Annotated[int, BeforeValidator(whole, json_schema_input_type=int | float | str)]


UNITS = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30}
"""Units of memory, in bytes."""


def size(value: object) -> float:
    """Read an amount of memory in bytes: a number, or text like "8 GB".

    Raises:
        ValueError: the value is no such amount, or not positive.
    """
    text = str(value).strip().upper()
    name = next((name for name in sorted(UNITS, key=len, reverse=True) if text.endswith(name)), "")
    try:
        result = number(text.removesuffix(name).strip()) * UNITS.get(name, 1.0)
    except ValueError:
        result = 0.0
    if not result > 0:
        raise ValueError(f"{value!r} is no amount of memory; write it like 8 GB or 500 MB")
    return result


Size = Annotated[float, BeforeValidator(size, json_schema_input_type=float | str)]
