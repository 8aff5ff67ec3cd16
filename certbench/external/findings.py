"""What an audit of somebody else's file has to say (imports nothing heavy)."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Severity(str, Enum):
    """How much a finding weighs."""

    REFUTED = "refuted"  # something claims more than is so
    WARNING = "warning"  # something does not hold together, or claims less than is so
    NOTE = "note"  # nothing is wrong, but a reader should know


@dataclass(frozen=True)
class Finding:
    """One thing found in a file.

    Attributes:
        check: which check found it.
        severity: how much it weighs.
        message: what was found, in a sentence.
        lines: of the file, counted from 1; empty if it is about the whole.
    """

    check: str
    severity: Severity
    message: str
    lines: tuple[int, ...] = ()

    @property
    def where(self) -> str:
        """The first lines, as text."""
        few = ", ".join(map(str, self.lines[:5]))
        more = f" and {len(self.lines) - 5} more" if len(self.lines) > 5 else ""
        return f"line{'s' if len(self.lines) > 1 else ''} {few}{more}" if self.lines else ""


def refuted(findings: Iterable[Finding]) -> bool:
    """Whether something claims more than is so."""
    return any(finding.severity is Severity.REFUTED for finding in findings)
