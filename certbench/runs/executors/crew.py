"""What the run knows of its workers, and of how far each piece of work is."""

import math
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

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
        prepared: seconds of its preparation; None if it was not prepared yet.
        answered: number of jobs and seconds that they took.
        deaths: number of workers that ended before it was prepared.
        begun: whether anybody was told.
    """

    number: int
    assignment: Assignment
    needs: Resources | None
    waiting: deque[Job]
    on: "set[Worker]" = field(default_factory=set)
    spent: float = 0.0
    prepared: float | None = None
    answered: tuple[int, float] = (0, 0.0)
    deaths: int = 0
    begun: bool = False

    def worth_helping(self) -> bool:
        """Say whether what waits costs more than to prepare it again."""
        jobs, seconds = self.answered
        return self.prepared is not None and jobs > 0 and len(self.waiting) * seconds / jobs > self.prepared

    def remaining(self) -> float:
        """Return the expected seconds of what waits."""
        jobs, seconds = self.answered
        return len(self.waiting) * seconds / jobs if jobs else math.inf


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

    def enter(self, phase: str) -> None:
        """Begin a phase."""
        self.phase, self.since = phase, time.perf_counter()
