"""VNN-LIB 2.0, through the package `vnnlib`, which reads that version alone."""

import json
from fractions import Fraction
from typing import Any

from certbench.core.properties import Property
from certbench.errors import ConfigError, MissingBackendError
from certbench.formats.vnnlib.formulas import Atom, Clause, Sum, conjoined, made, number, split
from certbench.formats.vnnlib.version1 import combined

INSTALL = 'pip install "certbench[vnnlib]"'
"""Command that installs what VNN-LIB 2.0 needs."""

NAMES = {"Plus": "+", "Minus": "-", "Multiply": "*"}
"""Operators by the names of their classes."""


def parse(text: str, source: str = "") -> Property:
    """Read a property of one network with one input and one output.

    Raises:
        ConfigError: the text is damaged, or has something that is not read here; the message begins with the line.
        MissingBackendError: the package is not installed.
    """
    try:
        import vnnlib
    except ImportError as error:
        raise MissingBackendError(f"VNN-LIB 2.0 needs the package vnnlib ({error}); install it: {INSTALL}") from error
    try:
        query = vnnlib.parse_query_string(text)
    except vnnlib.VNNLibException as error:
        raise ConfigError(_reason(str(error))) from error
    if len(query.networks) != 1:
        raise ConfigError(f"1: {len(query.networks)} networks are declared; properties of one are read")
    network = query.networks[0]
    if network.hidden or len(network.inputs) != 1 or len(network.outputs) != 1:
        raise ConfigError("1: a network with one input, one output and no hidden variables is read")
    inputs, outputs = (_size(part) for part in (network.inputs[0], network.outputs[0]))
    parts = [_clauses(one.expr) for one in query.assertions]
    if not parts:
        raise ConfigError("1: nothing is asserted")
    common, clauses = split(parts)
    return made(common, clauses, inputs, outputs, source)


def _reason(text: str) -> str:
    """Return the first problem that the package names, after its line."""
    try:
        first = json.loads(text)["errors"][0]
        return f"{first['line']}: {first['message']}: {first['offendingSymbol']}. {first['hint']}"
    except (ValueError, KeyError, IndexError, TypeError):
        where = text.partition(" at line ")[2].partition(",")[0]
        hint = " (numbers are written as 0.001 there, not as 1e-3)" if "syntax" in text else ""
        return f"{where or 1}: {text}{hint}"


def _size(part: Any) -> int:
    if not any(word in str(part.dtype) for word in ("F16", "F32", "F64", "Unknown")):  # Real is unknown to it
        raise ConfigError(f"1: {part.name} is {part.dtype}; only real numbers are read")
    count = 1
    for size in part.shape:
        count *= size
    return int(count)


def _line(node: Any) -> int:
    """Return the first line that a part of an expression tells."""
    if (line := getattr(node, "line", None)) is not None:
        return int(line)
    return next((found for part in node.children() if (found := _line(part))), 0)


def _clauses(node: Any) -> list[Clause]:
    """Return the disjunctive form of a formula."""
    kind, line = type(node).__name__, _line(node)
    if kind == "And":
        return conjoined([_clauses(part) for part in node.args], line)
    if kind == "Or":
        return [clause for part in node.args for clause in _clauses(part)]
    if kind in ("GreaterEqual", "GreaterThan", "LessEqual", "LessThan", "Equal"):
        one, other = _sum(node.lhs), _sum(node.rhs)
        strict = kind.endswith("Than")
        above, below = Atom(one, other, strict, line), Atom(other, one, strict, line)
        if kind == "Equal":
            return [(above, below)]
        return [(above if kind.startswith("Greater") else below,)]
    raise ConfigError(f"{line}: {kind} is not read as a formula; and, or, <=, >=, <, > and == are")


def _sum(node: Any) -> Sum:
    """Return a linear expression."""
    kind, line = type(node).__name__, _line(node)
    if kind == "Var":
        index, one = 0, Fraction(1)
        if len(node.indices) != len(node.shape):
            raise ConfigError(f"{line}: {node.name} needs {len(node.shape)} indices")
        for place, size in zip(node.indices, node.shape, strict=True):
            index = index * size + place
        return Sum(inputs={index: one}) if "Input" in str(node.kind) else Sum(outputs={index: one})
    if kind == "Negate":
        return _sum(node.expr).times(-1)
    if kind == "Minus":
        return combined("-", [_sum(node.head), *(_sum(part) for part in node.rest)], line)
    if kind in NAMES:
        return combined(NAMES[kind], [_sum(part) for part in node.args], line)
    if hasattr(node, "lexeme"):
        return Sum(number(node.lexeme, line))
    raise ConfigError(f"{line}: {kind} is not read as an expression")
