"""Whoever computes, a run has the same rows."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from certbench.core.certificate import Certificate
from certbench.errors import ConfigError
from certbench.runs import executors
from tests.support.runs import Bench, Fake


class Backwards:
    """Computes all jobs before the first answer, the last one first."""

    def answers(self, jobs: Iterable[executors.Job]) -> Iterator[Certificate]:
        answers = [job() for job in reversed(list(jobs))]
        yield from reversed(answers)


def test_a_line_in_the_table_adds_an_executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(executors.TABLE, "backwards", f"{__name__}:Backwards")
    runs = {}
    for name in executors.TABLE:
        (tmp_path / name).mkdir()
        bench = Bench(tmp_path / name)
        runs[name] = bench.run("lipschitz", "crown", {"name": "smoothing", "n": 100}, batch=1, executor=name).rows
    assert len(runs["inline"]) == 9
    for one, two in zip(runs["inline"], runs["backwards"], strict=True):
        assert (one.certifier, one.input, one.prediction, one.radius) == (
            two.certifier, two.input, two.prediction, two.radius,
        )  # fmt: skip


def test_a_job_that_fails_fails_its_pair_whoever_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(executors.TABLE, "backwards", f"{__name__}:Backwards")
    from certbench.core import registry

    monkeypatch.setitem(registry.table(), "fake", f"{Fake.__module__}:Fake")
    for name in executors.TABLE:
        (tmp_path / name).mkdir()
        rows = Bench(tmp_path / name).run("fake", {"name": "fake", "certifies": "bug"}, batch=1, executor=name).rows
        assert {row.outcome.value for row in rows[:3]} == {"completed"}
        assert {row.outcome.value for row in rows[3:]} == {"failed"}


def test_an_unknown_executor_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="inline"):
        Bench(tmp_path).run("lipschitz", executor="cluster")


class Forgetful:
    """Leaves out the last answer."""

    def answers(self, jobs: Iterable[executors.Job]) -> Iterator[Certificate]:
        yield from [job() for job in jobs][:-1]


def test_answers_that_are_missing_are_no_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(executors.TABLE, "forgetful", f"{__name__}:Forgetful")
    rows = Bench(tmp_path).run("lipschitz", batch=1, executor="forgetful").rows
    assert [row.outcome.value for row in rows] == ["completed", "completed", "failed"]
    assert "the executor gave no answer for 1 inputs" in rows[2].reason
