"""Runs in processes of their own, within a moment: forked from this process, and their servers of workers from them.

All of them have to import the same, which takes longer than a little run does. This process must have no threads.
"""

import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import util
from pathlib import Path
from typing import Any

import certbench.attacks.battery
import certbench.runs.executors.preloaded  # noqa: F401  # what each run would import
from certbench.core import registry
from certbench.errors import CertbenchError
from certbench.runs import run
from certbench.runs.suite import load
from tests.support.runs import Watcher

PATIENCE = 120.0
"""Seconds after which a run hangs."""


@dataclass
class Started:
    """A run in a process of its own.

    Attributes:
        pid: the process.
        said: where its words and those of its workers are read.
        code: its exit code, when it has ended.
    """

    pid: int
    said: int
    code: int | None = None

    def running(self) -> bool:
        """Say whether it goes on."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is None

    def finished(self) -> str:
        """Wait until it and all its workers have ended, and return what they said."""
        words, end = b"", time.monotonic() + PATIENCE
        while True:
            if not select.select([self.said], [], [], max(0.0, end - time.monotonic()))[0]:
                os.kill(self.pid, signal.SIGKILL)
                words += b" HANGS"
                break
            part = os.read(self.said, 1 << 16)
            if not part:
                break
            words += part
        os.close(self.said)
        while self.running():
            time.sleep(0.01)
        return words.decode(errors="replace")


def started(suite: dict[str, Any], folder: Path, most: int | None = None, **options: Any) -> Started:
    """Start a run; it can write files of so many bytes."""
    folder.mkdir(exist_ok=True)
    path = folder / "suite.yaml"
    path.write_text(json.dumps(suite), encoding="utf-8")
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid:
        os.close(theirs)
        return Started(pid, ours)
    code = 70
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(theirs, 2)
        os.dup2(nowhere, 0)
        os.dup2(nowhere, 1)
        os.closerange(3, 1024)
        if most is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        code = compute(path, folder / "run", options)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def compute(suite: Path, folder: Path, options: dict[str, Any]) -> int:
    """Run the suite in this process; the misbehaving certifier has a name here."""
    registry.table()["misbehaving"] = "tests.runs.executors.misbehaving:Misbehaving"
    util.spawnv_passfds = _forked  # type: ignore[attr-defined]
    try:
        run.run(load(str(suite)), folder, Watcher(), **options)
    except KeyboardInterrupt:
        return 130
    except CertbenchError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


_start = util.spawnv_passfds  # type: ignore[attr-defined]


def _forked(path: bytes, words: list[str], kept: list[int]) -> int:
    """Fork the server of workers, which would import what this process has; start others as ever."""
    if "forkserver" not in words[-1]:
        pid: int = _start(path, words, kept)
        return pid
    pid = os.fork()
    if pid == 0:
        try:
            for number in range(3, 1024):
                if number not in kept:
                    with suppress(OSError):
                        os.close(number)
            exec(words[-1], {})
        finally:
            os._exit(0)
    return pid
