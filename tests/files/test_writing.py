"""Files are written whole or not at all, and what cannot be written is one kind of error."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from certbench.errors import StoreError
from certbench.files.writing import write
from tests.support.disk import full_for


@pytest.mark.parametrize("content", ["new ä\n", b"new \xff"])
def test_what_is_written_is_there_and_nothing_else(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "deep" / "file"
    with pytest.raises(StoreError, match="cannot write"):
        write(path, content)
    assert not path.parent.exists()
    write(path, content, create_folder=True)
    write(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [*path.parent.iterdir()] == [path]


def test_a_full_disk_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, "old")
    message = r"cannot write .*file: .*No space left.*what was stored before is intact"
    with full_for("file"), pytest.raises(StoreError, match=message):
        write(path, "new")
    assert [*tmp_path.iterdir()] == [path] and path.read_text() == "old"


def test_readers_never_meet_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write(path, "old")
    seen, replace = [], os.replace

    def look(source: Path, target: Path) -> None:
        seen.append((path.read_text(), Path(source).read_text()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    write(path, "new")
    assert seen == [("old", "new")] and path.read_text() == "new"


def test_a_link_is_followed_and_a_pipe_is_no_file_to_replace(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    target.write_text("old")
    link.symlink_to(target)
    write(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write(pipe, "text")
    assert os.read(reader, 10) == b"text" and pipe.is_fifo()
    os.close(reader)
    with pytest.raises(StoreError, match="cannot write"):
        write(tmp_path, "a folder")


def test_a_long_name_has_a_draft_too(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    write(path, "text")
    assert path.read_text() == "text"


def test_writers_at_the_same_time_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [str(i) * 10_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            list(pool.map(lambda content: write(path, content), contents))
            assert path.read_text() in contents
    assert [*tmp_path.iterdir()] == [path]


def test_a_private_file_stays_private(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, "old")
    path.chmod(0o600)
    write(path, "new")
    assert path.stat().st_mode & 0o777 == 0o600
