"""Properties of networks: boxes of inputs, and the outputs that must not occur in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

CLOSE = 1e-9
"""Share of the sizes of its terms below which a sum is computed anew without rounding. Rounding is far below it."""


@dataclass(frozen=True, eq=False)
class Disjunct:
    """One way in which a property is violated: an input in a box whose outputs fulfil all conditions.

    Attributes:
        lower: least inputs, in float64.
        upper: largest inputs.
        rows: coefficients of the outputs in each condition.
        constants: constant of each condition; it holds where `rows @ y + constants >= 0`.
        strict: whether a condition wants more than 0.
    """

    lower: Float[Tensor, " inputs"]
    upper: Float[Tensor, " inputs"]
    rows: Float[Tensor, "m outputs"]
    constants: Float[Tensor, " m"]
    strict: tuple[bool, ...]

    @property
    def empty(self) -> bool:
        """Whether no input lies in the box."""
        return bool((self.lower > self.upper).any())

    def values(self, y: Float[Tensor, "n outputs"]) -> Float[Tensor, "n m"]:
        """Return the left-hand side of each condition, in float64."""
        return y.double() @ self.rows.T + self.constants

    def least(self, y: Float[Tensor, "n outputs"]) -> Float[Tensor, " n"]:
        """Return the least left-hand side; infinity if there is no condition."""
        values = self.values(y)
        return values.amin(dim=1) if len(self.rows) else values.new_full((len(y),), torch.inf)

    def holds(self, y: Float[Tensor, " outputs"]) -> bool:
        """Say whether outputs fulfil all conditions."""
        values = self.values(y[None])[0]
        close = values.abs() <= CLOSE * (y.double().abs() @ self.rows.abs().T + self.constants.abs())
        found = [
            self._exact(i, y) if near else value
            for i, (value, near) in enumerate(zip(values.tolist(), close.tolist(), strict=True))
        ]
        return all(value > 0 or (value == 0 and not strict) for value, strict in zip(found, self.strict, strict=True))

    def _exact(self, i: int, y: Float[Tensor, " outputs"]) -> Fraction:
        """Return the left-hand side of one condition without rounding."""
        pairs = zip(self.rows[i].tolist(), y.double().tolist(), strict=True)
        return sum((Fraction(a) * Fraction(b) for a, b in pairs if a), start=Fraction(float(self.constants[i])))

    def outside(self, x: Float[Tensor, " inputs"]) -> float:
        """Return by how much an input leaves the box, in the coordinate where it is most; 0 inside."""
        return float(torch.maximum(self.lower - x.double(), x.double() - self.upper).clamp(min=0).amax())


@dataclass(frozen=True)
class Property:
    """A property: it is violated (`sat`) if one of the disjuncts has an input, else it holds (`unsat`).

    Attributes:
        inputs: number of inputs.
        outputs: number of outputs.
        disjuncts: ways in which it is violated; those of one box share its tensors.
        source: name of the file.
    """

    inputs: int
    outputs: int
    disjuncts: tuple[Disjunct, ...]
    source: str = ""

    def boxes(self) -> list[list[Disjunct]]:
        """Return the disjuncts by their boxes; those with an empty box, which nothing fulfils, are left out."""
        groups: dict[tuple[bytes, bytes], list[Disjunct]] = {}
        for one in self.disjuncts:
            if not one.empty:
                key = (one.lower.numpy().tobytes(), one.upper.numpy().tobytes())
                groups.setdefault(key, []).append(one)
        return list(groups.values())

    def violated(self, y: Float[Tensor, " outputs"], among: Sequence[Disjunct] | None = None) -> bool:
        """Say whether outputs fulfil all conditions of one of the disjuncts, whatever the input."""
        return any(one.holds(y) for one in (self.disjuncts if among is None else among))
