"""The verdict on a run: the gravest problem decides, and known issues do not."""

from typing import Any

import pytest

from certbench import Guarantee, Outcome, Subject
from certbench.exit_codes import ExitCode
from certbench.results.known_issues import KnownIssue, KnownIssues
from certbench.results.rows import Row
from certbench.results.verdict import judge


def row(index: int, **more: Any) -> Row:
    values = {"label": 0, "prediction": 0, "radius": 0.5, "outcome": Outcome.COMPLETED} | more
    return Row("net", "crown", Guarantee.SOUND, Subject.BASE, 2.0, index, **values)


GOOD, REFUTED, FAILED = row(0), row(1, upper=0.4), row(2, radius=0.0, outcome=Outcome.FAILED)


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([], ExitCode.OK),
        ([GOOD], ExitCode.OK),
        ([GOOD, FAILED], ExitCode.INCOMPLETE),
        ([FAILED, REFUTED, GOOD], ExitCode.UNSOUND),
    ],
)
def test_the_gravest_decides(rows: list[Row], code: ExitCode) -> None:
    verdict = judge(rows, KnownIssues())
    assert verdict.exit_code is code
    assert verdict.refuted == [one for one in rows if one is REFUTED]
    assert verdict.unanswered == [one for one in rows if one is FAILED]


def test_what_is_known_does_not_decide_and_what_is_mended_is_stale() -> None:
    known, mended = (KnownIssue(reason="x", kind="unsound", input=index) for index in ((1,), (0,)))
    verdict = judge([GOOD, REFUTED, FAILED], KnownIssues((known, mended)))
    assert (verdict.known, verdict.stale) == ([(REFUTED, known)], [mended])
    assert (verdict.refuted, verdict.unanswered, verdict.exit_code) == ([], [FAILED], ExitCode.INCOMPLETE)
