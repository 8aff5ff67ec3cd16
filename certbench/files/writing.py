"""Files written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from certbench.errors import StoreError


def write(path: Path, content: str | bytes, *, create_folder: bool = False) -> None:
    """Replace a file in one step, so that readers see the old file or the whole new one.

    A link is followed. What is there and is no file, such as `/dev/stdout`, is written to as it is.

    Args:
        path: of the file.
        content: text is written as UTF-8.
        create_folder: whether to make the folder if there is none.

    Raises:
        StoreError: the file cannot be written; the one that was there is intact.
    """
    data = content.encode() if isinstance(content, str) else content
    with writing(path):
        if create_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        target = path.resolve()
        written = draft(target)
        try:
            written.write_bytes(data)
            os.replace(written, target)
        finally:
            written.unlink(missing_ok=True)


def draft(path: Path) -> Path:
    """Return where new content is written before it takes the place of `path`: beside it, one for each process."""
    return path.with_name(f".{path.name[:100]}.{os.getpid()}.tmp")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise `StoreError` in place of an error of the file system."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}; what was stored before is intact") from error
