"""The foreman gives work to workers that have what it needs, and lets no work wait for others."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from certbench.core.resources import Resources
from certbench.errors import ConfigError
from certbench.runs.events import Stop
from certbench.runs.executors import Answer, Assignment, foreman
from certbench.runs.executors.crew import Worker
from certbench.runs.executors.foreman import Foreman
from certbench.runs.work import Failure

GPU = Resources(gpus=1)


@dataclass
class Asked:
    """Work that is never computed: the workers below have the answers."""

    name: str
    resources: Resources = field(default_factory=Resources)
    source: Any = None
    foreign: bool = False
    sendable: bool = True

    def prepare(self, classifier: Any) -> Any:
        raise AssertionError

    def compute(self, classifier: Any, state: Any, x: Any) -> list[Any]:
        raise AssertionError


class Clerk:
    """Answers at once, as a worker would."""

    def __init__(self) -> None:
        self.says: deque[dict[str, Any]] = deque([{"ready": True}])
        self.ended = False

    def send(self, kind: str, content: Any) -> None:
        fine = {"failure": None}
        self.says += [{"loaded": True}, {"prepared": 0.1, **fine}] if kind == "work" else [{"results": [1], **fine}]

    def kill(self) -> None:
        self.ended = True

    def end(self) -> str:
        self.kill()
        return "by hand"


class Office:
    """A place for workers; those that need a GPU wait for one for ever."""

    def __init__(self) -> None:
        self.started: list[tuple[Resources | None, Clerk]] = []
        self.lost = False

    def most(self) -> int:
        return 1

    def needs(self, work: Any) -> Resources | None:
        found: Resources = work.resources
        return found

    def lacks(self, needs: Resources | None) -> str | None:
        return "the GPU is gone" if self.lost and needs == GPU else None

    def pack(self, work: Any) -> Any:
        if not work.sendable:
            raise TypeError("a lambda")
        return work.name

    def start(self, needs: Resources | None) -> Worker:
        clerk = Clerk()
        if needs == GPU:
            clerk.says.clear()
        self.started.append((needs, clerk))
        return Worker(clerk, needs)

    def hear(self, crew: Sequence[Worker]) -> Iterator[tuple[Worker, dict[str, Any] | None]]:
        for worker in [*crew]:
            assert isinstance(worker.body, Clerk)
            if worker.body.says:
                yield worker, worker.body.says.popleft()

    def welcome(self, worker: Worker, message: dict[str, Any]) -> None:
        assert message == {"ready": True}

    def watch(self, crew: Sequence[Worker]) -> None:
        pass

    def pardons(self, worker: Worker) -> bool:
        return False


def computed(office: Office, *works: Asked) -> Iterator[Answer]:
    jobs = ((0,), (1,))
    for answer in Foreman(office).answers([Assignment(one, torch.zeros(2, 1), jobs) for one in works], Stop()):
        if answer is not None:
            yield answer


def test_work_that_waits_for_a_machine_holds_up_no_other_and_fails_when_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(foreman, "ROOM", 0.0)
    office = Office()
    answers = computed(office, Asked("large", GPU), Asked("small"))
    small = [next(answers), next(answers)]
    assert [(answer.work, answer.places, answer.results) for answer in small] == [(1, (0,), [1]), (1, (1,), [1])]
    office.lost = True
    (large,) = answers
    assert large.work == 0 and large.places == (0, 1)
    assert isinstance(large.results, Failure) and large.results.reason == "the GPU is gone"
    assert [needs for needs, _ in office.started] == [GPU, Resources()]
    assert all(clerk.ended for _, clerk in office.started)


def test_work_that_cannot_be_sent_fails_alone() -> None:
    first, *others = computed(Office(), Asked("stuck", sendable=False), Asked("small"))
    assert isinstance(first.results, Failure)
    assert first.results.reason == "cannot be sent to another process: a lambda"
    assert [answer.results for answer in others] == [[1], [1]]


def test_resources_are_numbers_from_0() -> None:
    with pytest.raises(ConfigError, match="gpus of resources must be 0 or more"):
        Resources(gpus=-1)
    assert Resources.largest([Resources(2), Resources(gpus=1)]) == Resources(2, 1)
