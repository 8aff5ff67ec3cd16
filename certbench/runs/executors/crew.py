"""What the run knows of its workers, and of how far each piece of work is."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from certbench.core.claims import Outcome
from certbench.core.resources import Resources
from certbench.runs.executors import Assignment
from certbench.runs.work import Failure


@dataclass(frozen=True)
class Job:
    """Inputs that are computed at once.

    Attributes:
        places: their places.
        deaths: number of workers that ended while they computed it.
        halved: size of the batches after memory had run out; 0 if it did not.
    """

    places: tuple[int, ...]
    deaths: int = 0
    halved: int = 0


@dataclass(eq=False)
class Progress:
    """How far a piece of work is.

    Attributes:
        number: its place in the list.
        assignment: the work.
        needs: what a worker must have reserved.
        waiting: jobs that nobody computes.
        on: the workers that compute it.
        spent: seconds that count for its limit.
        loaded: seconds in which it was loaded.
        prepared: seconds of its preparation; None if it was not prepared yet.
        answered: number of inputs that were computed, and the seconds that they took.
        deaths: number of workers that ended before it was prepared.
        begun: whether anybody was told.
        refused: whether there are no certificates of this kind.
        left: number of inputs without an answer.
    """

    number: int
    assignment: Assignment
    needs: Resources | None
    waiting: deque[Job]
    on: "set[Worker]" = field(default_factory=set)
    spent: float = 0.0
    loaded: float = 0.0
    prepared: float | None = None
    answered: tuple[int, float] = (0, 0.0)
    deaths: int = 0
    begun: bool = False
    refused: bool = False
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = sum(len(job.places) for job in self.waiting)

    @property
    def open(self) -> bool:
        """Whether something is left."""
        return bool(self.waiting or self.on)

    @property
    def jobs(self) -> int:
        """The number of jobs without an answer."""
        return len(self.waiting) + len(self.on)

    @property
    def inputs(self) -> int:
        """The number of inputs that nobody computes yet."""
        return self.left - sum(len(worker.job.places) for worker in self.on if worker.job)

    @property
    def known(self) -> float | None:
        """Its own seconds for an input: of what was computed, else of what is stored; None if there is neither."""
        inputs, seconds = self.answered if self.answered[0] else self.assignment.stored
        return seconds / inputs if inputs else None

    @property
    def setup(self) -> float | None:
        """Seconds to load and prepare it; None if it was not prepared yet."""
        return None if self.prepared is None else self.loaded + self.prepared

    def took(self, inputs: int, seconds: float) -> None:
        """Take note of inputs that were computed, or for which the time was spent."""
        self.left -= inputs
        self.answered = self.answered[0] + inputs, self.answered[1] + seconds

    def places(self) -> tuple[int, ...]:
        """Return the places of all inputs without an answer."""
        jobs = [*(worker.job for worker in self.on if worker.job), *self.waiting]
        return tuple(sorted(place for job in jobs for place in job.places))

    def end(self, outcome: Outcome) -> None:
        """Take note that all that is left has this outcome."""
        self.refused = outcome is Outcome.UNSUPPORTED
        if outcome is Outcome.TIMED_OUT:
            self.took(self.left, sum(worker.elapsed for worker in self.on))
        self.left = 0
        self.waiting.clear()


@runtime_checkable
class Body(Protocol):
    """What a worker is made of: a process of this machine, or of another."""

    def send(self, kind: str, content: Any) -> None:
        """Send `work` or a `job`; if it has ended, its end is noticed elsewhere."""

    def kill(self) -> None:
        """End it; this does not wait."""

    def end(self) -> str:
        """End it, and say how it ended: `by SIGKILL`, `with exit code 0`."""


@dataclass(eq=False)
class Worker:
    """A worker, as seen from the run.

    Attributes:
        body: the worker itself.
        needs: what it has reserved; it takes work that needs the same.
        phase: `starting`, `idle`, `loading`, `preparing` or `computing`.
        since: time at which the phase began.
        progress: the work that it has loaded.
        job: the job at hand, or the one that follows the preparation.
        counts: whether its preparation counts for the limit of its work; that of a helper does not.
        verdict: the failure for which it was killed.
    """

    body: Body
    needs: Resources | None = None
    phase: str = "starting"
    since: float = field(default_factory=time.perf_counter)
    progress: Progress | None = None
    job: Job | None = None
    counts: bool = True
    verdict: Failure | None = None

    @property
    def elapsed(self) -> float:
        """Seconds of this phase."""
        return time.perf_counter() - self.since

    @property
    def computes(self) -> bool:
        """Whether it computes a job."""
        return self.phase == "computing"

    def enter(self, phase: str) -> None:
        """Begin a phase."""
        self.phase, self.since = phase, time.perf_counter()
