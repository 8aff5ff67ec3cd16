"""Classes of changes: what became of one radius against another. Imports nothing heavy."""

import math
from dataclasses import dataclass
from enum import Enum

from certbench.results.rows import refuted


class Kind(str, Enum):
    """What became of one row, in the order in which reports list it."""

    NON_FINITE = "non-finite"
    UNSOUND = "unsound"
    SAME = "same"
    NOISE = "noise"
    LOST = "lost"
    GAINED = "gained"
    LOOSER = "looser"
    TIGHTER = "tighter"
    MISSING = "missing"
    NEW = "new"
    LABEL_FLIP = "label-flip"
    INCOMPARABLE = "incomparable"


WRONG = frozenset({Kind.NON_FINITE, Kind.UNSOUND})
"""Classes that no policy allows."""


@dataclass(frozen=True)
class Tolerance:
    """How far two radii may be apart and still be the same but for rounding: absolute + relative * |old|.

    Batch size, oneDNN, and float32 for float64 moved margins by up to 3e-5 absolute, and by 7e-4 relative near zero
    (measured); the same settings gave the same bits.
    """

    absolute: float = 3e-5
    relative: float = 7e-4

    def covers(self, old: float, new: float) -> bool:
        """Whether the two are the same but for rounding; never so if one is infinite or NaN."""
        return abs(new - old) <= self.absolute + self.relative * abs(old) < math.inf


ROUNDING = Tolerance()
"""What moves radii that did not change."""


def classify(old: float, new: float, tolerance: Tolerance = ROUNDING, upper: float = math.inf) -> Kind:
    """The class of one radius against another, of the same question; nothing random in it.

    Args:
        old: the radius as it was.
        new: the radius as it is.
        tolerance: what is noise.
        upper: distance of the closest counterexample known.
    """
    if math.isnan(new) or new < 0 or (new == math.inf and old != math.inf):
        return Kind.NON_FINITE
    if refuted(new, upper, math.inf):
        return Kind.UNSOUND
    if new == old:
        return Kind.SAME
    if math.isnan(old) or old < 0:  # mended
        return Kind.GAINED
    if tolerance.covers(old, new):
        return Kind.NOISE
    if new == 0:
        return Kind.LOST
    if old == 0:
        return Kind.GAINED
    return Kind.LOOSER if new < old else Kind.TIGHTER
