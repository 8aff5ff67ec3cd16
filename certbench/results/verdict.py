"""What is wrong with the rows of a run, and what is known of it. Imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass

from certbench.exit_codes import ExitCode
from certbench.results.known_issues import KnownIssue, KnownIssues, problem
from certbench.results.rows import Row


@dataclass(frozen=True)
class RunVerdict:
    """What is wrong with a run.

    Attributes:
        refuted: rows that a known counterexample refutes, known issues excepted.
        unanswered: rows without an answer, likewise.
        known: rows with a problem that is a known issue, and that issue.
        stale: known issues about rows of which none has the problem any more.
    """

    refuted: Sequence[Row]
    unanswered: Sequence[Row]
    known: Sequence[tuple[Row, KnownIssue]]
    stale: Sequence[KnownIssue]

    @property
    def exit_code(self) -> ExitCode:
        """Return what a command ends with, to which known issues do not add; the gravest first."""
        return ExitCode.UNSOUND if self.refuted else ExitCode.INCOMPLETE if self.unanswered else ExitCode.OK


def judge(rows: Sequence[Row], issues: KnownIssues) -> RunVerdict:
    """Return what is wrong with these rows, apart from what is known."""
    problems = [(row, kind) for row in rows if (kind := problem(row)) is not None]
    fresh, known = issues.split(problems)
    refuted = [row for row, kind in fresh if kind == "unsound"]
    unanswered = [row for row, kind in fresh if kind != "unsound"]
    return RunVerdict(refuted, unanswered, known, issues.stale(rows, problems))
