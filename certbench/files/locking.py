"""A lock on a folder, so that two processes do not write it at once."""

import errno
import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import IO

from certbench.errors import StoreError
from certbench.files.writing import writing

NAME = ".lock"
"""Name of the file that is locked. A killed process leaves it behind, where it means nothing."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""Errors of file systems that have no locks, as some on a network."""


class FolderLock:
    """The lock of a folder, held until it is closed or its process ends, however it ends.

    The system holds it. A file system that has no locks gets a file of its own instead, with process and machine. That
    file is left behind if the process is killed, and is taken over if the process was of this machine.

    Raises:
        StoreError: another process holds the lock, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        """Take the lock; make a missing folder."""
        self.path = folder / NAME
        self.mark: Path | None = None
        while not self._taken(folder):
            pass
        try:
            self.file.truncate(0)
            self.file.write(_myself())
            self.file.flush()
        except BaseException:
            self.close()
            raise

    def _taken(self, folder: Path) -> bool:
        """Open and lock the file; say whether it is still there, for whoever held it may have deleted it meanwhile."""
        with writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        self.file: IO[str] = os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace")
        try:
            if not _lock(self.file):
                self._mark()
            if self.path.exists() and os.path.samestat(self.path.stat(), os.fstat(descriptor)):
                return True
        except BlockingIOError:
            holder = _told(self.file.read(1000))
            self.file.close()
            raise StoreError(f"{folder} is being written by another run{holder}; wait for it, or stop it") from None
        except BaseException:
            self.file.close()
            raise
        if self.mark is not None:
            self.mark.unlink(missing_ok=True)
        self.file.close()
        return False

    def close(self) -> None:
        """Release the lock, and delete its files while it is held."""
        with suppress(OSError):  # a folder that has vanished needs no lock
            self.path.unlink(missing_ok=True)
            if self.mark is not None:
                self.mark.unlink(missing_ok=True)
        self.file.close()

    def _mark(self) -> None:
        """Make a file that says who writes, where there are no locks."""
        mark = self.path.with_name(f"{NAME}.held")
        with writing(mark):
            if mark.exists() and _ended(mark.read_text(encoding="utf-8", errors="replace")):
                mark.unlink(missing_ok=True)
            try:
                with open(mark, "x", encoding="utf-8") as file:
                    file.write(_myself())
            except FileExistsError:
                holder = _told(mark.read_text(encoding="utf-8", errors="replace"))
                raise StoreError(
                    f"{self.path.parent} is being written by another run{holder}; if that has ended, delete {mark}"
                ) from None
        self.mark = mark


def _lock(file: IO[str]) -> bool:
    """Lock a file; say whether the file system can.

    Raises:
        BlockingIOError: another process has locked it.
    """
    try:
        import fcntl
    except ImportError:  # no Unix
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return True


def _myself() -> str:
    return json.dumps({"process": os.getpid(), "machine": socket.gethostname()})


def _told(text: str) -> str:
    """Say who holds a lock, as far as the file tells."""
    with suppress(ValueError, LookupError, TypeError):
        said = json.loads(text)
        return f" (process {int(said['process'])} on {said['machine']})"
    return ""


def _ended(text: str) -> bool:
    """Say whether the process that wrote this was of this machine, and has ended."""
    with suppress(ValueError, LookupError, TypeError):
        said = json.loads(text)
        if said["machine"] == socket.gethostname():
            try:
                os.kill(int(said["process"]), 0)
            except ProcessLookupError:
                return True
            except OSError:
                return False
    return False
