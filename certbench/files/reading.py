"""Reading of text files that people write."""

import posixpath
from pathlib import Path

from certbench.errors import ConfigError


def read_text(path: Path, what: str) -> str:
    """Return the text of a file in UTF-8.

    Args:
        path: path of the file.
        what: name of the file in the message, for example "the suite".

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {what} {path}: {error}") from error


def plain(path: str) -> str:
    """Return a path in a list of files without `./`, detours and `.gz`, so that one file has one name."""
    return posixpath.normpath(path.strip()).removesuffix(".gz")
