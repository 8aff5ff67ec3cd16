"""Text files that people write."""

from pathlib import Path

import pytest

from certbench.errors import ConfigError
from certbench.files.reading import read_text


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text("ä", encoding="utf-8")
    assert read_text(path, "the suite") == "ä"
    path.write_bytes(b"\xff")
    for file in (path, tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match=f"cannot read the suite {file}: "):
            read_text(file, "the suite")
