"""The words that certificates, rows and reports share (imports nothing heavy)."""

from enum import Enum

ABSTAIN = -1
"""The prediction of a certificate whose method could not tell the class."""


class Guarantee(str, Enum):
    """The meaning of a certifier's radii."""

    SOUND = "sound"  # never wrong
    COMPLETE = "complete"  # never wrong, and exact when the outcome is completed
    PROBABILISTIC = "probabilistic"  # wrong with probability at most alpha, per input


class Subject(str, Enum):
    """The function that is certified."""

    BASE = "base"  # the classifier itself
    SMOOTHED = "smoothed"  # its majority vote under noise: another function


class Outcome(str, Enum):
    """The way in which the computation for one input ended. The radius is valid whatever the outcome."""

    COMPLETED = "completed"
    LIMITED = "limited"  # the search proved the largest radius that it tries; the true one may be larger
    ABSTAINED = "abstained"
    TIMED_OUT = "timed out"
    OUT_OF_MEMORY = "out of memory"
    FAILED = "failed"
    UNSUPPORTED = "unsupported"

    @property
    def answered(self) -> bool:
        """Whether the method came to its own end; the others are not answers and are never cached as such."""
        return self in (Outcome.COMPLETED, Outcome.LIMITED, Outcome.ABSTAINED)
