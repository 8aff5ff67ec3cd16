"""What the run knows of its workers, and of how far each piece of work is."""

import math
import os
import pickle
import signal
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

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


@dataclass(eq=False)
class Worker:
    """A process, as seen from the run.

    Attributes:
        phase: `starting`, `idle`, `loading`, `preparing` or `computing`.
        since: time at which the phase began.
        progress: the work that it has loaded.
        job: the job at hand, or the one that follows the preparation.
        counts: whether its preparation counts for the limit of its work; that of a helper does not.
        base: bytes that it used when it was ready.
        verdict: the failure for which it was killed.
    """

    process: Any
    connection: Connection
    phase: str = "starting"
    since: float = field(default_factory=time.perf_counter)
    progress: Progress | None = None
    job: Job | None = None
    counts: bool = True
    base: int = 0
    verdict: Failure | None = None

    @property
    def elapsed(self) -> float:
        """Seconds of this phase."""
        return time.perf_counter() - self.since

    def enter(self, phase: str) -> None:
        """Begin a phase."""
        self.phase, self.since = phase, time.perf_counter()

    def send(self, kind: str, content: bytes) -> None:
        """Send a message; if the process has ended, its end is noticed elsewhere."""
        with suppress(OSError):
            self.connection.send_bytes(pickle.dumps((kind, content)))

    def kill(self) -> None:
        """End the process, and those that it started."""
        with suppress(OSError, AttributeError):
            if os.getpgid(self.process.pid) == self.process.pid:
                os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(OSError):
            self.process.kill()

    def end(self) -> str:
        """Say how the ended process ended."""
        self.kill()
        self.process.join(10)
        self.connection.close()
        code = self.process.exitcode
        if code is not None and code < 0:
            with suppress(ValueError):
                return f"by {signal.Signals(-code).name}"
        return f"with exit code {code}"
