"""Formulas over inputs and outputs: they become the disjuncts of a property."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from certbench.core.properties import Disjunct, Property
from certbench.errors import ConfigError
from certbench.files.numbers import DECIMAL

LARGEST = 2**16
"""Largest number of disjuncts of a property. A judgement: each is bounded."""

ZERO = Fraction(0)

FARTHEST, DIGITS = 400, 5
"""Largest exponent of a number, beyond which float64 has none; and most characters that it is written with."""

TINIEST = 1e-290
"""Least modulus of a number that is not zero: smaller ones would lose digits in float64."""


@dataclass(frozen=True)
class Sum:
    """A linear expression: a constant, and coefficients of inputs and outputs by their flat index.

    Nothing is rounded.
    """

    constant: Fraction = ZERO
    inputs: dict[int, Fraction] = field(default_factory=dict)
    outputs: dict[int, Fraction] = field(default_factory=dict)

    @property
    def is_constant(self) -> bool:
        """Whether there is no variable."""
        return not self.inputs and not self.outputs

    def times(self, factor: Fraction | int) -> "Sum":
        """Multiply by a number."""
        return Sum(
            self.constant * factor,
            {i: value * factor for i, value in self.inputs.items()},
            {i: value * factor for i, value in self.outputs.items()},
        )

    def plus(self, other: "Sum") -> "Sum":
        """Add another expression; coefficients that cancel are dropped."""
        return Sum(
            self.constant + other.constant, _added(self.inputs, other.inputs), _added(self.outputs, other.outputs)
        )


def _added(one: dict[int, Fraction], other: dict[int, Fraction]) -> dict[int, Fraction]:
    found = {i: one.get(i, ZERO) + other.get(i, ZERO) for i in {**one, **other}}
    return {i: value for i, value in found.items() if value != 0}


@dataclass(frozen=True)
class Atom:
    """One comparison: `left >= right`, or `left > right`; its line, and whether it is strict."""

    left: Sum
    right: Sum
    strict: bool
    line: int


Clause = tuple[Atom, ...]
"""Comparisons that all hold."""


def conjoined(parts: Sequence[Sequence[Clause]], line: int) -> list[Clause]:
    """Return the disjunctive form of a conjunction of disjunctive forms.

    Raises:
        ConfigError: there are too many disjuncts.
    """
    common: Clause = tuple(atom for part in parts if len(part) == 1 for atom in part[0])
    found: list[Clause] = [()]
    for part in parts:
        if len(part) == 1:
            continue
        if len(found) * len(part) > LARGEST:
            raise ConfigError(f"{line}: more than {LARGEST} disjuncts; split the property into several files")
        found = [one + other for one in found for other in part]
    return [common + one for one in found] if common else found


def made(common: Clause, clauses: Iterable[Clause], inputs: int, outputs: int, source: str) -> Property:
    """Make a property.

    Args:
        common: comparisons that hold in every disjunct.
        clauses: the further comparisons of each disjunct.
        inputs: number of inputs.
        outputs: number of outputs.
        source: name of the file.

    Raises:
        ConfigError: an input is compared with something else than a number, or has no bound; the message begins with
            the line.
    """
    low, high, shared = _box(common, [-math.inf] * inputs, [math.inf] * inputs)
    ends = (_tensor(low), _tensor(high))
    disjuncts = []
    for clause in clauses:
        if any(_is_bound(atom) for atom in clause):
            own_low, own_high, rest = _box(clause, list(low), list(high))
            box = (_tensor(own_low), _tensor(own_high))
        else:
            box, rest = ends, list(clause)
        for i, (least, most) in enumerate(zip(*box, strict=True)):
            if math.isinf(least) or math.isinf(most):
                missing = "lower" if math.isinf(least) else "upper"
                raise ConfigError(f"the input {i} has no {missing} bound in some disjunct; give it one")
        disjuncts.append(_disjunct(box, [*shared, *rest], outputs))
    return Property(inputs, outputs, tuple(disjuncts), source)


def _tensor(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _is_bound(atom: Atom) -> bool:
    return bool(atom.left.inputs or atom.right.inputs)


def _box(atoms: Iterable[Atom], low: list[float], high: list[float]) -> tuple[list[float], list[float], list[Atom]]:
    """Cut a box by the comparisons of single inputs with numbers; return the comparisons of outputs, too."""
    rest = []
    for atom in atoms:
        if not _is_bound(atom):
            rest.append(atom)
            continue
        if atom.left.outputs or atom.right.outputs:
            raise ConfigError(f"{atom.line}: inputs and outputs in one comparison are not read")
        if atom.strict:
            raise ConfigError(f"{atom.line}: strict bounds of inputs are not read; write <= or >=")
        variable, number, up = (
            (atom.right, atom.left, True) if atom.left.is_constant else (atom.left, atom.right, False)
        )
        if not number.is_constant or len(variable.inputs) != 1:
            raise ConfigError(f"{atom.line}: an input is compared with one number; other conditions are not read")
        ((i, factor),) = variable.inputs.items()
        if factor not in (1, -1):
            raise ConfigError(f"{atom.line}: an input with a factor is not read; divide the bound by it")
        if variable.constant != 0:
            raise ConfigError(f"{atom.line}: an input plus a number is not read; subtract it from the bound")
        value = nearest(number.constant * factor, atom.line)
        if up == (factor > 0):  # number >= x
            high[i] = min(high[i], value)
        else:
            low[i] = max(low[i], value)
    return low, high, rest


def _disjunct(box: tuple[Tensor, Tensor], atoms: Sequence[Atom], outputs: int) -> Disjunct:
    rows, constants, strict = torch.zeros(len(atoms), outputs, dtype=torch.float64), [], []
    for row, atom in zip(rows, atoms, strict=True):
        gap = atom.left.plus(atom.right.times(-1))
        for j, value in gap.outputs.items():
            row[j] = nearest(value, atom.line)
        constants.append(nearest(gap.constant, atom.line))
        strict.append(atom.strict)
    return Disjunct(*box, rows, _tensor(constants), tuple(strict))


def number(text: str, line: int) -> Fraction:
    """Read a number exactly.

    Raises:
        ConfigError: it is none, or far beyond float64.
    """
    found = DECIMAL.fullmatch(text)
    if found is None or len(found[1] or "") > DIGITS or abs(int(found[1] or 0)) > FARTHEST:
        raise ConfigError(f"{line}: {text!r} is neither a declared variable nor a number that float64 has")
    return Fraction(text)


def nearest(value: Fraction, line: int) -> float:
    """Return the nearest number in float64. The order of numbers stays.

    Raises:
        ConfigError: it is too large or too small to have all digits.
    """
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found) or (value != 0 and abs(found) < TINIEST):
        raise ConfigError(f"{line}: {'a number is' if found else 'a number rounds to zero, so it is'} beyond float64")
    return found


def split(parts: Sequence[Sequence[Clause]]) -> tuple[Clause, list[Clause]]:
    """Return what all assertions have in common, and the disjuncts of the others."""
    common: Clause = tuple(atom for part in parts if len(part) == 1 for atom in part[0])
    return common, conjoined([part for part in parts if len(part) != 1], 0)


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text without comments, counted from 1."""
    for i, line in enumerate(text.splitlines(), 1):
        yield i, line.partition(";")[0]
