"""The server that workers are forked from. It imports what they need once; this module imports nothing heavy."""

import multiprocessing
import sys
from typing import Any


def context() -> Any:
    """Return the way in which workers start: forked from a server on Linux, each afresh elsewhere.

    The server is a process of its own that has imported torch, and has run nothing in threads.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["certbench.runs.executors.preloaded"])
    return found


def start() -> None:
    """Let the server start and import, while this process does the same."""
    context()
    if sys.platform == "linux":
        from multiprocessing.forkserver import ensure_running

        ensure_running()
