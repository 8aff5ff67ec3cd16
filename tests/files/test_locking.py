"""One process writes a folder; a killed one leaves it unlocked."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from certbench.errors import StoreError
from certbench.files.locking import FolderLock

HOLD = """
import sys, time
from pathlib import Path
from certbench.files.locking import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(params=["locks", "no locks"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a file system with locks, or without."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    if request.param == "no locks":
        monkeypatch.setattr(fcntl, "flock", refuse)
    return tmp_path / "run"


def test_the_second_is_refused_until_the_first_has_ended(folder: Path) -> None:
    first = FolderLock(folder)
    with pytest.raises(StoreError, match=f"another run .process {os.getpid()} on {socket.gethostname()}"):
        FolderLock(folder)
    first.close()
    assert [*folder.iterdir()] == []
    FolderLock(folder).close()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"process {process.pid} "):
            FolderLock(tmp_path)
        process.send_signal(signal.SIGKILL)
    FolderLock(tmp_path).close()


@pytest.mark.parametrize("folder", ["no locks"], indirect=True)
def test_what_a_killed_process_left_is_taken_over_on_its_own_machine(folder: Path) -> None:
    folder.mkdir()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mark = folder / ".lock.held"
    mark.write_text(json.dumps({"process": ended.pid, "machine": "another"}))
    with pytest.raises(StoreError, match=r"on another\); if that has ended, delete "):
        FolderLock(folder)
    mark.write_text(json.dumps({"process": ended.pid, "machine": socket.gethostname()}))
    FolderLock(folder).close()
    assert not mark.exists()


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(StoreError, match="cannot write"):
        FolderLock(tmp_path / "run")
    assert (tmp_path / "mine").read_text() == "mine"
