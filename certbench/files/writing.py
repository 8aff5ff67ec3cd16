"""Files written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from certbench.errors import StoreError


def write(path: Path, text: str) -> None:
    """Replace a file in one step, so that no reader meets half of it."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(path.suffix + ".part")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise `StoreError` in place of an error of the file system."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}; what was stored before is intact") from error
