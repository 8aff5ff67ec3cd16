"""Text files that people write, read whole."""

from pathlib import Path

from certbench.errors import ConfigError


def read_text(path: Path, what: str) -> str:
    """Return the text of a file in UTF-8.

    Args:
        path: of the file.
        what: what the file is, for the message: "the suite".

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {what} {path}: {error}") from error
