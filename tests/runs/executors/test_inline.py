"""Whoever computes, a run has the same rows, and each input has one answer."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from certbench.core import registry
from certbench.errors import CertificationError, ConfigError
from certbench.runs import executors
from certbench.runs.events import Stop
from certbench.runs.executors.inline import Inline
from tests.support.runs import Bench, Fake


class Backwards(Inline):
    """Computes all work before the first answer, and gives the last one first."""

    def answers(self, assignments: Sequence[executors.Assignment], stop: Stop) -> Iterator[executors.Answer | None]:
        yield from reversed(list(super().answers(assignments, stop)))


class Forgetful(Inline):
    """Leaves out the last answer."""

    def answers(self, assignments: Sequence[executors.Assignment], stop: Stop) -> Iterator[executors.Answer | None]:
        yield from list(super().answers(assignments, stop))[:-1]


class Stuttering(Inline):
    """Gives each answer twice."""

    def answers(self, assignments: Sequence[executors.Assignment], stop: Stop) -> Iterator[executors.Answer | None]:
        for answer in super().answers(assignments, stop):
            yield from (answer, answer)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for kind in (Backwards, Forgetful, Stuttering):
        monkeypatch.setitem(executors.TABLE, kind.__name__.lower(), f"{__name__}:{kind.__name__}")
    monkeypatch.setitem(registry.table(), "fake", f"{Fake.__module__}:Fake")
    return Bench(tmp_path)


def test_a_line_in_the_table_adds_an_executor_and_order_changes_nothing(bench: Bench) -> None:
    runs = {}
    suite = ["lipschitz", "crown", {"name": "smoothing", "n": 100}, {"name": "fake", "certifies": "bug"}]
    for name in ("inline", "backwards"):
        rows = bench.run(*suite, batch=1, executor=name).rows
        runs[name] = [(row.certifier, row.input, row.prediction, row.radius, row.outcome, row.reason) for row in rows]
        (bench.folder / "run" / "results.db").unlink()
    assert len(runs["inline"]) == 12
    assert {row[4].value for row in runs["inline"][9:]} == {"failed"}
    assert runs["inline"] == runs["backwards"]


def test_an_unknown_executor_is_refused_with_the_known_ones(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="inline"):
        bench.run("lipschitz", executor="cluster")


def test_answers_that_are_missing_are_no_timeout(bench: Bench) -> None:
    rows = bench.run("lipschitz", batch=1, executor="forgetful").rows
    assert [row.outcome.value for row in rows] == ["completed", "completed", "failed"]
    assert "the executor gave no answer for 1 inputs" in rows[2].reason


def test_two_answers_for_an_input_are_an_error(bench: Bench) -> None:
    with pytest.raises(CertificationError, match="answered twice for 1 inputs"):
        bench.run("lipschitz", batch=1, executor="stuttering")
