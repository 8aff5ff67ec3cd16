"""VNN-LIB 1.0 (Demarchi et al., 2023): `declare-const` and `assert`, over X_0, X_1, ... and Y_0, Y_1, ..."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from certbench.core.properties import Property
from certbench.errors import ConfigError
from certbench.formats.vnnlib.formulas import Atom, Clause, Sum, conjoined, lines_of, made, number, split

TOKEN = re.compile(r"[()]|[^\s()]+")

VARIABLE = re.compile(r"([XY])_(0|[1-9][0-9]*)")

DEEP = 60
"""Largest depth of parentheses."""


@dataclass(frozen=True)
class Node:
    """A word, or a list in parentheses, with its line."""

    line: int
    word: str = ""
    parts: "tuple[Node, ...] | None" = None

    @property
    def head(self) -> str:
        """First word of a list."""
        return self.parts[0].word if self.parts else ""


def parse(text: str, source: str = "") -> Property:
    """Read a property.

    Raises:
        ConfigError: the text is damaged, or has something that is not read here; the message begins with the line.
    """
    sizes = {"X": 0, "Y": 0}
    parts: list[list[Clause]] = []
    for node in _lists(text):
        if node.head == "declare-const":
            _declare(node, sizes)
        elif node.head == "assert":
            if len(node.parts or ()) != 2:
                raise ConfigError(f"{node.line}: an assertion is (assert FORMULA)")
            assert node.parts is not None
            parts.append(_clauses(node.parts[1], sizes))
        else:
            what = node.head or node.word or "()"
            raise ConfigError(f"{node.line}: {what} is not read; only declare-const and assert are")
    if not sizes["X"] or not sizes["Y"]:
        raise ConfigError(f"1: no {'inputs X_0, ...' if not sizes['X'] else 'outputs Y_0, ...'} are declared")
    if not parts:
        raise ConfigError("1: nothing is asserted")
    common, clauses = split(parts)
    return made(common, clauses, sizes["X"], sizes["Y"], source)


def _lists(text: str) -> "list[Node]":
    """Read the lists of a text, in order."""
    open_: list[tuple[int, list[Node]]] = []
    found: list[Node] = []
    for line, words in lines_of(text):
        for word in TOKEN.findall(words):
            if word == "(":
                if len(open_) == DEEP:
                    raise ConfigError(f"{line}: more than {DEEP} parentheses are open")
                open_.append((line, []))
                continue
            if word == ")":
                if not open_:
                    raise ConfigError(f"{line}: a parenthesis is closed that was not opened")
                start, parts = open_.pop()
                node = Node(start, parts=tuple(parts))
            else:
                node = Node(line, word)
            if open_:
                open_[-1][1].append(node)
            elif node.parts is None:
                raise ConfigError(f"{line}: {word!r} stands outside of parentheses")
            else:
                found.append(node)
    if open_:
        raise ConfigError(f"{open_[-1][0]}: a parenthesis is not closed; the file may be truncated")
    return found


def _declare(node: Node, sizes: dict[str, int]) -> None:
    words = [part.word for part in node.parts or ()]
    name = VARIABLE.fullmatch(words[1]) if len(words) == 3 else None
    if name is None:
        raise ConfigError(f"{node.line}: a declaration is (declare-const X_0 Real), with X_ for inputs, Y_ for outputs")
    if words[2] != "Real":
        raise ConfigError(f"{node.line}: {words[1]} is {words[2]}; only Real is read")
    if int(name[2]) != sizes[name[1]]:
        raise ConfigError(f"{node.line}: {words[1]} is declared where {name[1]}_{sizes[name[1]]} is next")
    sizes[name[1]] += 1


def _clauses(node: Node, sizes: dict[str, int]) -> list[Clause]:
    """Return the disjunctive form of a formula."""
    parts = (node.parts or ())[1:]
    match node.head:
        case "and" if parts:
            return conjoined([_clauses(part, sizes) for part in parts], node.line)
        case "or" if parts:
            return [clause for part in parts for clause in _clauses(part, sizes)]
        case "<=" | ">=" | "<" | ">" | "=" if len(parts) == 2:
            one, other = (_sum(part, sizes) for part in parts)
            strict = node.head in ("<", ">")
            above, below = Atom(one, other, strict, node.line), Atom(other, one, strict, node.line)
            if node.head == "=":
                return [(above, below)]
            return [(above if node.head in (">=", ">") else below,)]
        case "<=" | ">=" | "<" | ">" | "=":
            raise ConfigError(f"{node.line}: {node.head} compares two expressions, and has {len(parts)}")
    what = node.head or node.word or "()"
    raise ConfigError(f"{node.line}: {what!r} is not read as a formula; and, or, <=, >=, <, > and = are")


def _sum(node: Node, sizes: dict[str, int]) -> Sum:
    """Return a linear expression."""
    if node.parts is None:
        name = VARIABLE.fullmatch(node.word)
        if name is None:
            return Sum(number(node.word, node.line))
        kind, index = name[1], int(name[2])
        if index >= sizes[kind]:
            raise ConfigError(f"{node.line}: {node.word} is not declared before it is used")
        return Sum(inputs={index: Fraction(1)}) if kind == "X" else Sum(outputs={index: Fraction(1)})
    return combined(node.head, [_sum(part, sizes) for part in node.parts[1:]], node.line)


def combined(head: str, parts: Sequence[Sum], line: int) -> Sum:
    """Apply +, - or * to linear expressions.

    Raises:
        ConfigError: the result is not linear, or it is another function.
    """
    if head == "+" and parts:
        found = parts[0]
        for part in parts[1:]:
            found = found.plus(part)
        return found
    if head == "-" and parts:
        if len(parts) == 1:
            return parts[0].times(-1)
        return combined("+", [parts[0], *(part.times(-1) for part in parts[1:])], line)
    if head == "*" and parts:
        found = Sum(Fraction(1))
        for part in parts:
            if not found.is_constant and not part.is_constant:
                raise ConfigError(f"{line}: a product of two variables is not linear, and not read")
            found = part.times(found.constant) if found.is_constant else found.times(part.constant)
        return found
    raise ConfigError(f"{line}: {head or '()'!r} is not read as an expression; numbers, variables, +, - and * are")
