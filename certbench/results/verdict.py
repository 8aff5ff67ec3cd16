"""The verdict on a run: its problems, new and known. Imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass

from certbench.exit_codes import ExitCode
from certbench.results.known_issues import KnownIssue, KnownIssues, problem
from certbench.results.rows import Row


@dataclass(frozen=True)
class RunVerdict:
    """The problems of a run.

    Attributes:
        refuted: rows that a known counterexample refutes, without known issues.
        unanswered: rows without an answer, without known issues.
        known: rows whose problem is a known issue, each with that issue.
        stale: known issues that match rows, none of which has the problem any more.
        missing: number of rows that have not been computed.
    """

    refuted: Sequence[Row]
    unanswered: Sequence[Row]
    known: Sequence[tuple[Row, KnownIssue]]
    stale: Sequence[KnownIssue]
    missing: int = 0

    @property
    def exit_code(self) -> ExitCode:
        """Exit code of a command that shows the run: that of the gravest problem; known issues do not count."""
        if self.refuted:
            return ExitCode.UNSOUND
        return ExitCode.INCOMPLETE if self.unanswered or self.missing else ExitCode.OK


def judge(rows: Sequence[Row], issues: KnownIssues, missing: int = 0) -> RunVerdict:
    """Sort the problems of these rows into refuted, unanswered and known ones.

    Args:
        rows: the computed rows.
        issues: known issues.
        missing: number of rows that have not been computed.
    """
    problems = [(row, kind) for row in rows if (kind := problem(row)) is not None]
    fresh, known = issues.split(problems)
    refuted = [row for row, kind in fresh if kind == "unsound"]
    unanswered = [row for row, kind in fresh if kind != "unsound"]
    return RunVerdict(refuted, unanswered, known, issues.stale(rows, problems), missing)
