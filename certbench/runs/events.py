"""Messages of a run to whoever watches it, and from whoever interrupts it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol, runtime_checkable


class Interrupted(KeyboardInterrupt):
    """Ctrl-C was pressed; the current batch was stored before this was raised."""


@runtime_checkable
class Watcher(Protocol):
    """An observer of a run's progress."""

    def data(self, text: str) -> None:
        """Take note of what was done to the numbers of the data set."""

    def begin(self, total: int, done: int) -> None:
        """Take note of how many rows, attacks and estimates are planned, and how many of them are already stored."""

    def now(self, text: str) -> None:
        """Take note of what is being computed."""

    def advance(self, outcomes: Mapping[str, int]) -> None:
        """Take note of how many rows of each outcome were stored."""

    def left(self, seconds: float | None) -> None:
        """Take note of how many seconds are expected to be left; None if nobody can say."""

    def note(self, text: str) -> None:
        """Take note of a problem that does not stop the run."""


class Stop:
    """A wish to stop, and what is in the works when it comes."""

    def __init__(
        self,
        begins: Callable[[str], None] = lambda name: None,
        left: Callable[[float | None], None] = lambda seconds: None,
    ) -> None:
        """Take the functions that hear the name of each piece of work that begins, and how long the rest will take."""
        self.begins = begins
        self.left = left
        self.asked = False
        self.inputs = 0

    def holding(self, inputs: int) -> None:
        """Take note of how many inputs are being computed, for whoever waits for them."""
        self.inputs = inputs

    def check(self) -> None:
        """End the run if that was asked for.

        Raises:
            Interrupted: it was.
        """
        if self.asked:
            raise Interrupted

    def ask(self, signum: int, frame: Any) -> None:
        """Hear a signal: the first one is kept until what is in the works is stored; a second one does not wait.

        Raises:
            KeyboardInterrupt: it is the second.
        """
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        many = f", up to {self.inputs} inputs" if self.inputs else ""
        with suppress(OSError):  # written at once, past buffers that the signal may have interrupted
            os.write(2, f"\nfinishing the batch at hand{many}; again to stop now\n".encode())


def _hang_up(signum: int, frame: Any) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        if os.isatty(stream):
            os.dup2(nowhere, stream)
    os.close(nowhere)


@contextmanager
def gently(begins: Callable[[str], None], left: Callable[[float | None], None]) -> Iterator[Stop]:
    """Let the first Ctrl-C or SIGTERM wait for the jobs at hand; a second one does not wait.

    A terminal that is closed does not end the run; what is still printed goes nowhere.
    """
    stop = Stop(begins, left)
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    wanted: list[tuple[signal.Signals, Any]] = [(signal.SIGINT, stop.ask), (signal.SIGTERM, stop.ask)]
    if hasattr(signal, "SIGHUP"):
        wanted.append((signal.SIGHUP, _hang_up))
    before = [(number, signal.signal(number, handler)) for number, handler in wanted]
    try:
        yield stop
    finally:
        for number, handler in before:
            signal.signal(number, handler)
