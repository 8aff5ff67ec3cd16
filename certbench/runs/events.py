"""What a run tells those who watch it."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, honoured after the batch at hand was stored."""


@runtime_checkable
class Watcher(Protocol):
    """Who wants to see how a run comes along."""

    def begin(self, total: int, done: int) -> None:
        """So many rows, attacks and estimates are planned, of which so many are stored already."""

    def now(self, text: str) -> None:
        """This is being computed."""

    def advance(self, outcomes: Mapping[str, int]) -> None:
        """So many rows of each outcome were stored."""

    def note(self, text: str) -> None:
        """Something went wrong that does not stop the run."""


@contextmanager
def gently() -> Iterator[Callable[[], None]]:
    """The first Ctrl-C waits for the batch at hand to be stored; a second one does not."""
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
