"""An executor with processes of its own: one core each, replaced after a crash, killed at a limit.

Processes are kept here, and not by a library, for three reasons: a worker keeps the state of a certifier while jobs of
its work come; preparation and jobs have limits of their own; and limits are of a piece of work, not of a job.

On Linux, a server imports torch once, and forks each worker from itself within milliseconds. Elsewhere workers start
afresh. There are never more workers than cores. `certbench.runs.executors.foreman` says what each of them does.
"""

import json
import math
import os
import pickle
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import certbench
from certbench.core.claims import Outcome
from certbench.core.memory import CPU, free, written
from certbench.core.resources import Resources
from certbench.errors import ConfigError
from certbench.runs import server
from certbench.runs.events import Stop
from certbench.runs.executors import Answer, Assignment, Settings
from certbench.runs.executors import worker as workers
from certbench.runs.executors.crew import Worker
from certbench.runs.executors.foreman import TICK, Foreman
from certbench.runs.work import Failure, Work

SCARCE = 200e6
"""Number of free bytes of the machine below which the largest worker is stopped, before the system stops anything."""

SLACK = 1.05
"""Share of the limit of memory at which a worker is killed. An exception at the limit, where it can be, comes first."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def begin(*arguments: Any) -> None:
    """Be a worker; all that it would else import first is imported before it says that it is ready."""
    from certbench.runs.executors.preloaded import main

    main(*arguments)


@dataclass(eq=False)
class Child:
    """A process of this machine.

    Attributes:
        base: bytes that it used when it was ready.
    """

    process: Any
    connection: Connection
    base: int = 0

    def send(self, kind: str, content: Any) -> None:
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
        """End the process, and say how it ended."""
        self.kill()
        self.process.join(10)
        self.connection.close()
        code = self.process.exitcode
        if code is not None and code < 0:
            with suppress(ValueError):
                return f"by {signal.Signals(-code).name}"
        return f"with exit code {code}"


class Processes:
    """Computes jobs in processes."""

    def __init__(self, settings: Settings) -> None:
        """Take the settings; nothing starts yet."""
        self.settings = settings

    def answers(self, assignments: Sequence[Assignment], stop: Stop) -> Iterator[Answer | None]:
        """Yield answers as they come."""
        memory = min((one.limits.memory or math.inf for one in assignments), default=math.inf)
        yield from Foreman(_Machine(self.settings, memory)).answers(assignments, stop)


class _Machine:
    """This machine, where workers start."""

    def __init__(self, settings: Settings, memory: float) -> None:
        self.settings = settings
        self.memory = memory
        self.context = server.context()

    def most(self) -> int:
        """Return the number of workers that was asked for, or that of cores."""
        return self.settings.workers or cores()

    def needs(self, work: Work) -> Resources | None:
        """Reserve nothing: this machine does all work."""

    def lacks(self, needs: Resources | None) -> str | None:
        """Lack nothing."""

    def pack(self, work: Work) -> Any:
        """Return the pickle of work."""
        return pickle.dumps(work)

    def pardons(self, worker: Worker) -> bool:
        """Pardon nobody: a worker that does not start here tells that none does."""
        return False

    def start(self, needs: Resources | None) -> Worker:
        """Start a process."""
        ours, theirs = self.context.Pipe()
        arguments = theirs, self.settings.threads, self.memory, os.getcwd()
        process = self.context.Process(target=begin, args=arguments, daemon=True)
        try:
            process.start()
        except (OSError, EOFError) as error:
            raise ConfigError(f"workers do not start: {error!r}; use the executor inline") from error
        theirs.close()
        return Worker(Child(process, ours))

    def welcome(self, worker: Worker, message: dict[str, Any]) -> None:
        """Refuse a worker that has another certbench."""
        if message["ready"] != certbench.__file__:
            raise ConfigError(
                f"workers import {message['ready']}, but this process has {certbench.__file__}; "
                "set PYTHONPATH, or use the executor inline"
            )
        child = _child(worker)
        child.base = workers.resident(child.process.pid)

    def hear(self, crew: Sequence[Worker]) -> Iterator[tuple[Worker, dict[str, Any] | None]]:
        """Wait a moment for messages."""
        speakers = {_child(worker).connection: worker for worker in crew}
        for connection in wait(list(speakers), TICK) if speakers else []:
            assert isinstance(connection, Connection)
            message = None
            with suppress(EOFError, OSError, ValueError):
                message = json.loads(connection.recv_bytes())
            yield speakers[connection], message if isinstance(message, dict) else None

    def watch(self, crew: Sequence[Worker]) -> None:
        """Kill workers that use more memory than they may; that they ended is heard at the next look."""
        busy = [(worker, _child(worker)) for worker in crew if worker.job is not None]
        used = [(workers.resident(child.process.pid), worker, child) for worker, child in busy]
        for size, worker, child in used:
            if size > child.base + self.memory * SLACK:
                _out_of_memory(worker, f"more than the limit of {written(self.memory)}")
        if used and free(CPU) < SCARCE:
            size, worker, _ = max(used, key=lambda one: one[0])
            _out_of_memory(worker, f"{written(size)}, when the machine had no more")


def _child(worker: Worker) -> Child:
    assert isinstance(worker.body, Child)
    return worker.body


def _out_of_memory(worker: Worker, used: str) -> None:
    if worker.verdict is None:
        worker.verdict = Failure(Outcome.OUT_OF_MEMORY, f"out of memory: the process used {used}")
        worker.body.kill()
