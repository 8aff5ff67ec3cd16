"""Fixtures of the tests of what others measured."""

import json
from pathlib import Path
from typing import Any

import pytest

from certbench.external.audit_log import audit_log, record
from certbench.external.output import told
from tests.support.logs import COHEN, Audit
from tests.support.terminal import text_of


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    """Write files (name to content), audit them, and give the exit code, what was printed, and the JSON."""

    def call(files: dict[str, str], **options: Any) -> tuple[int, str, Any]:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        found = audit_log([tmp_path / name for name in files], **options)
        return found.exit_code, text_of(told(found)), json.loads(json.dumps(record(found), default=str))

    return call


@pytest.fixture
def cohen() -> Path:
    """The released logs."""
    if not COHEN.exists():
        pytest.skip("the published logs are not at hand")
    return COHEN
