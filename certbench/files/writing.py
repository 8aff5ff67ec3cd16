"""Writing of files, whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from certbench.errors import StoreError


def write(path: Path, content: str | bytes, *, create_folder: bool = False) -> None:
    """Replace a file in one step, so that readers see the old file or the whole new one.

    A link is followed. If the path is there and is no file, such as `/dev/stdout`, it is written to directly.

    Args:
        path: path of the file.
        content: the new content; text is written as UTF-8.
        create_folder: whether to create a missing folder.

    Raises:
        StoreError: the file cannot be written; the old file is intact.
    """
    data = content.encode() if isinstance(content, str) else content
    with writing(path):
        if create_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        target = path.resolve()
        draft = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")  # one for each writer
        try:
            with open(draft, "xb") as file:  # new: nothing that lies there is followed or overwritten
                file.write(data)
            if target.exists():
                shutil.copymode(target, draft)
            os.replace(draft, target)
        finally:
            draft.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise `StoreError` in place of an error of the file system."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}; what was stored before is intact") from error
