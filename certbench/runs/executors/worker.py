"""A process that computes jobs, one at a time. It hears pickles, and answers in JSON.

It belongs to no terminal, so that Ctrl-C reaches the process of the run alone, whatever a solver does with it. It ends
with the process that made it, even out of an endless loop.
"""

import contextlib
import ctypes
import json
import math
import os
import pickle
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import certbench
from certbench.core.classifier import Classifier
from certbench.runs.guarding import settle
from certbench.runs.work import Failure, ModelSource, Session, Work, attempt


def main(connection: Connection, threads: int, memory: float, folder: str) -> None:
    """Compute until the connection ends.

    Args:
        connection: the way to the process of the run.
        threads: number of threads.
        memory: bytes that this process may use.
        folder: folder that relative paths of models start from.
    """
    if hasattr(os, "setsid"):
        with contextlib.suppress(OSError):
            os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with_parent()
    os.chdir(folder)
    settle(threads)
    limit_memory(memory)
    station = Station()
    say(connection, ready=certbench.__file__)
    while True:
        try:
            kind, content = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        if kind == "work":
            say(connection, **station.load(content))
            say(connection, **station.prepare())
        else:
            say(connection, **station.compute(content))


def say(connection: Connection, **parts: Any) -> None:
    """Send an answer; nobody hears it if the run has ended, and then this process ends, too."""
    text = json.dumps(parts).encode()
    try:
        connection.send_bytes(text)
    except OSError:
        os._exit(1)


class Station:
    """The work at hand, and the model that was loaded last. What its methods return is plain."""

    def __init__(self, load: Callable[[ModelSource], Classifier] = ModelSource.open) -> None:
        """Take the function that loads a model here."""
        self.opened = load
        self.session: Session | None = None
        self.loaded: tuple[ModelSource, Classifier] | None = None
        self.failure: Failure | None = None

    def load(self, content: bytes) -> dict[str, Any]:
        """Take a piece of work, and load its model; this is not timed."""
        self.session = None

        def load() -> None:
            work: Work = pickle.loads(content)  # imports the certifier's module
            if self.loaded is None or self.loaded[0] != work.source:
                self.loaded = None
                self.loaded = work.source, self.opened(work.source)
            self.session = Session(work, self.loaded[1])

        self.failure = attempt(load, "when the model and the certifier were loaded")
        return {"loaded": True}

    def prepare(self) -> dict[str, Any]:
        """Prepare the work; if it could not be loaded, say so."""
        if self.session is None:
            return {"prepared": 0.0, "failure": _written(self.failure)}
        failure = self.session.prepare()
        return {"prepared": self.session.seconds, "failure": _written(failure)}

    def compute(self, content: bytes) -> dict[str, Any]:
        """Compute a job: the pickle of an array of inputs."""
        assert self.session is not None
        results = self.session.compute(torch.from_numpy(pickle.loads(content)))
        if isinstance(results, Failure):
            return {"failure": _written(results), "results": None}
        return {"failure": None, "results": results}


def _written(failure: Failure | None) -> dict[str, Any] | None:
    return None if failure is None else asdict(failure)


def _end_with_parent() -> None:
    """Ask Linux to kill this process when the one that forked it ends; elsewhere it ends at its next message."""
    if sys.platform == "linux":
        set_signal_of_parents_death = 1
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(set_signal_of_parents_death, signal.SIGKILL)


def limit_memory(memory: float) -> None:
    """Cap the address space, so that running out is an exception. Where it cannot be capped, the run watches.

    Args:
        memory: bytes beyond those that are mapped already.
    """
    if not math.isfinite(memory) or torch.cuda.is_available() or sys.platform != "linux":
        return  # CUDA maps far more than it uses
    import resource

    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (int(memory) + mapped, resource.RLIM_INFINITY))


def resident(pid: int) -> int:
    """Return the bytes of memory that a process uses; 0 if it has ended, or if the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
