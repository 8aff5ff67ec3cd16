"""Findings in somebody else's file. Imports nothing heavy."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Severity(str, Enum):
    """The severity of a finding."""

    REFUTED = "refuted"  # something claims too much
    CONTRADICTED = "contradicted"  # this or something else claims too much, and it is not known which
    WARNING = "warning"  # something is inconsistent, or claims too little
    NOTE = "note"  # nothing is wrong, but a reader should know


@dataclass(frozen=True)
class Finding:
    """One thing found in a file.

    Attributes:
        check: name of the check.
        severity: severity of the finding.
        message: the finding, in a sentence.
        lines: lines of the file, counted from 1; empty if it is about the whole.
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
    """Say whether something claims too much, here or in a file that contradicts this one."""
    return any(finding.severity in (Severity.REFUTED, Severity.CONTRADICTED) for finding in findings)
