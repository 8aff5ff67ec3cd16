"""Messages of a run to whoever watches it."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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

    def note(self, text: str) -> None:
        """Take note of a problem that does not stop the run."""


@contextmanager
def gently() -> Iterator[Callable[[], None]]:
    """Let the first Ctrl-C wait until the current batch is stored; a second one does not wait."""
    asked = False

    def ask(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    def stop() -> None:
        if asked:
            raise Interrupted

    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
