"""Classes of changes from one radius to another. Imports nothing heavy."""

import math
from dataclasses import dataclass
from enum import Enum

from certbench.results.rows import refuted


class Kind(str, Enum):
    """The classes of changes of a row, in the order in which reports list them."""

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
    """The largest difference of two radii that are the same but for rounding: absolute + relative * |old|.

    The defaults are measured: batch size, oneDNN, and float32 for float64 moved margins by up to 3e-5 absolute, and by
    7e-4 relative near zero; the same settings gave the same bits.
    """

    absolute: float = 3e-5
    relative: float = 7e-4

    def covers(self, old: float, new: float) -> bool:
        """Say whether two radii are the same but for rounding; never so if one is infinite or NaN."""
        return abs(new - old) <= self.absolute + self.relative * abs(old) < math.inf


ROUNDING = Tolerance()
"""Default tolerance, for changes by rounding."""


def classify(old: float, new: float, tolerance: Tolerance = ROUNDING, upper: float = math.inf) -> Kind:
    """Return the class of the change from one radius to another; both answer the same question, without randomness.

    Args:
        old: the radius as it was.
        new: the radius as it is.
        tolerance: largest difference that is noise.
        upper: distance of the closest known counterexample.
    """
    if math.isnan(new) or new < 0 or (new == math.inf and old != math.inf):
        return Kind.NON_FINITE
    if refuted(new, upper, math.inf):
        return Kind.UNSOUND
    if new == old:
        return Kind.SAME
    if math.isnan(old) or old < 0:  # an error was corrected
        return Kind.GAINED
    if tolerance.covers(old, new):
        return Kind.NOISE
    if new == 0:
        return Kind.LOST
    if old == 0:
        return Kind.GAINED
    return Kind.LOOSER if new < old else Kind.TIGHTER
