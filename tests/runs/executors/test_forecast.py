"""The time that is left is expected right within a factor of two, and what is long comes first.

The foreman itself gives out work whose times are planted, on a clock that nobody waits for.
"""

import math
import pickle
import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from certbench.core.resources import Resources
from certbench.runs.events import Stop
from certbench.runs.executors import Assignment, crew, forecast, foreman
from certbench.runs.executors.crew import Worker
from certbench.runs.executors.forecast import fitted
from certbench.runs.executors.foreman import Foreman
from certbench.runs.suite import Limits


class Clock:
    """Stands for the module `time`."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (crew, foreman, forecast):
        monkeypatch.setattr(module, "time", clock)
    return clock


@dataclass
class Planted:
    """Work whose times are given: those of the preparation, and of each input."""

    like: tuple[str, ...]
    prepares: float
    takes: list[float]
    batch: int = 1
    limits: Limits = field(default_factory=Limits)
    foreign: bool = False
    refuses: bool = False
    source: Any = None
    resources: Resources = field(default_factory=Resources)

    @property
    def name(self) -> str:
        return " ".join(self.like)

    def assignment(self) -> Assignment:
        places = range(len(self.takes))
        jobs = tuple(tuple(places[i : i + self.batch]) for i in range(0, len(places), self.batch))
        return Assignment(self, torch.arange(len(places))[:, None], jobs, self.limits, self.like)

    def prepare(self, classifier: Any) -> Any:
        raise AssertionError

    def compute(self, classifier: Any, state: Any, x: Any) -> list[Any]:
        raise AssertionError

    @property
    def seconds(self) -> float:
        return self.prepares + sum(self.takes)


class Clerk:
    """Answers when the planted time is over."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.free = clock, 0.0
        self.says: deque[tuple[float, dict[str, Any]]] = deque([(clock.now, {"ready": True})])

    def send(self, kind: str, content: Any) -> None:
        if kind == "work":
            self.work: Planted = content
            refusal = {"outcome": "unsupported", "reason": "it is refused"} if content.refuses else None
            self._say(0.0, loaded=True)
            self._say(content.prepares, prepared=content.prepares, failure=refusal)
        else:
            places = pickle.loads(content).flatten().tolist()
            self._say(sum(self.work.takes[i] for i in places), results=[1] * len(places), failure=None)

    def _say(self, after: float, **message: Any) -> None:
        self.free = max(self.free, self.clock.now) + after
        self.says.append((self.free, message))

    def kill(self) -> None: ...

    def end(self) -> str:
        return "by hand"


@dataclass
class Office:
    """A place for workers."""

    clock: Clock
    workers: int
    prepared: Counter[str] = field(default_factory=Counter)

    def most(self) -> int:
        return self.workers

    def needs(self, work: Any) -> Resources | None: ...

    def lacks(self, needs: Resources | None) -> str | None: ...

    def pack(self, work: Any) -> Any:
        self.prepared[work.name] += 1
        return work

    def start(self, needs: Resources | None) -> Worker:
        return Worker(Clerk(self.clock), needs)

    def hear(self, crew: Sequence[Worker]) -> Iterator[tuple[Worker, dict[str, Any] | None]]:
        clerks = [(worker, worker.body) for worker in crew if isinstance(worker.body, Clerk) and worker.body.says]
        self.clock.now = min((max(clerk.says[0][0], self.clock.now) for _, clerk in clerks), default=math.inf)
        for worker, clerk in clerks:
            if clerk.says[0][0] <= self.clock.now:
                yield worker, clerk.says.popleft()[1]

    def welcome(self, worker: Worker, message: dict[str, Any]) -> None: ...

    def watch(self, crew: Sequence[Worker]) -> None: ...

    def pardons(self, worker: Worker) -> bool:
        return False


@dataclass
class Replayed:
    """Hold what was seen of a run.

    Attributes:
        seconds: its duration.
        expected: by time, what was expected to be left.
        begun: names of the work, as it began.
        prepared: number of workers that prepared each.
    """

    seconds: float
    expected: dict[float, float | None]
    begun: list[str]
    prepared: Counter[str]

    def ratios(self, first: float, last: float) -> list[float]:
        """Return what was expected over what was true, between two shares of the run."""
        asked = {at: left for at, left in self.expected.items() if first <= at / self.seconds <= last}
        return [math.nan if left is None else left / (self.seconds - at) for at, left in asked.items()]


def replay(clock: Clock, works: Sequence[Planted], workers: int) -> Replayed:
    office, begun, expected = Office(clock, workers), list[str](), dict[float, float | None]()

    def left(seconds: float | None) -> None:
        expected[clock.now] = seconds

    for _ in Foreman(office).answers([work.assignment() for work in works], Stop(begun.append, left)):
        pass
    return Replayed(clock.now, expected, begun, office.prepared)


def suite(seed: int) -> list[Planted]:
    """Make work as a suite has it: methods from quick to slow, small and large models, inputs that differ."""
    draws = random.Random(seed)
    works = [Planted(("attacks", model), 0.0, [0.1 * (1 + size)] * 20, batch=20) for size, model in enumerate("abcd")]
    methods = {"quick": 0.01, "batched": 0.05, "slow": 0.3, "slower": 0.5, "solver": 2.0, "dear": 0.02}
    for size, model in enumerate("abcd"):
        for norm, factor in (("L2", 1.0), ("Linf", 0.5)):
            for method, each in methods.items():
                noise = [math.exp(draws.gauss(0.0, 0.4)) for _ in range(21)]
                takes = [each * 2.0**size * factor * part for part in noise[:20]]
                batch = 1 if method in ("slow", "slower", "solver") else 10
                works.append(
                    Planted((method, model, norm), (20.0 if method == "dear" else 0.1) * noise[20], takes, batch)
                )
    return works


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_time_left_is_right_within_a_factor_of_two_from_a_tenth_of_the_run_on(clock: Clock, workers: int) -> None:
    for seed in range(3):
        clock.now, works = 0.0, suite(seed)
        found = replay(clock, works, workers)
        ratios = found.ratios(0.1, 0.95)
        assert len(ratios) > 100
        right = sum(0.5 <= ratio <= 2.0 for ratio in ratios)  # once in a while, a slow method is met late
        assert right >= 0.95 * len(ratios) and min(ratios) >= 0.25 and max(ratios) <= 4.0
        best = max(sum(work.seconds for work in works) / workers, max(work.prepares for work in works))
        assert found.seconds <= 1.1 * best  # nothing long is left for the end, and nothing dear is done twice


def test_work_is_known_by_its_sample_and_left_only_where_coming_back_costs_little(clock: Clock) -> None:
    cheap, dear = (Planted((name, "a", "L2"), prepares, [1.0] * 50) for name, prepares in (("x", 0.1), ("y", 5.0)))
    foreign = Planted(("z", "a", "L2"), 0.1, [1.0] * 50, foreign=True)
    last = Planted(("w", "a", "L2"), 0.1, [3.0])
    assert replay(clock, [cheap, dear, last], 1).prepared == {"x a L2": 2, "y a L2": 1, "w a L2": 1}
    found = replay(clock, [cheap, foreign, last], 1)
    assert found.prepared == {"x a L2": 2, "z a L2": 1, "w a L2": 1}
    assert found.begun == ["x a L2", "z a L2", "w a L2"]


def test_a_limit_of_time_ends_what_is_left_and_counts_in_what_is_expected(clock: Clock) -> None:
    limits = Limits(seconds=10.0)
    works = [Planted(("slow", model, "L2"), 0.0, [0.7] * 100, limits=limits) for model in "abcdefgh"]
    found = replay(clock, works, 1)
    assert found.seconds == pytest.approx(8 * 10.0, abs=8 * 0.7)
    ratios = found.ratios(0.1, 0.9)
    assert ratios and min(ratios) >= 0.5 and max(ratios) <= 2.0


def test_a_second_preparation_counts_for_no_limit(clock: Clock) -> None:
    """An order of work is ours to choose: nobody pays for it."""
    aside = Planted(("x", "a", "L2"), 0.9, [1.0] * 60, limits=Limits(seconds=61.5))
    found = replay(clock, [aside, Planted(("y", "a", "L2"), 0.1, [1.0])], 1)
    assert found.prepared["x a L2"] == 2
    assert found.seconds == pytest.approx(0.9 + 0.9 + 60.0 + 0.1 + 1.0)


def test_work_of_a_refused_kind_is_expected_to_take_nothing(clock: Clock) -> None:
    refused = [Planted(("lp", model, "L2"), 0.0, [100.0] * 9, refuses=True) for model in "abc"]
    works = [*refused, *(Planted(("x", model, "L2"), 0.1, [1.0] * 9) for model in "abc")]
    found = replay(clock, works, 1)
    ratios = found.ratios(0.3, 0.95)
    assert ratios and min(ratios) >= 0.5 and max(ratios) <= 2.0


def test_factors_are_found_again_and_nothing_is_said_of_nothing() -> None:
    likes = [(method, model) for method in ("x", "y", "z") for model in ("a", "b", "c")]
    true = [2.0 ** (5 * ord(method[0]) % 4) * 3.0 ** ord(model[0]) / 3.0**97 for method, model in likes]
    known = [value if i % 4 != 3 else None for i, value in enumerate(true)]
    found = fitted(likes, known)
    assert all(value is not None and 0.7 < value / wanted < 1.4 for value, wanted in zip(found, true, strict=True))
    assert fitted(likes, [None] * 9) == [None] * 9
