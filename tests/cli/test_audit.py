"""The command `audit`."""

import json

import pytest

from certbench.auditing import audit
from certbench.exit_codes import ExitCode
from tests.cli.conftest import FOLDER, Run, write


def test_ctrl_c_during_an_audit_says_how_to_go_on(certbench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(audit, "audit", interrupt)
    code, _, err = certbench("audit", "my run", "--steps", "9")
    assert code == ExitCode.INTERRUPTED
    assert err == (
        "interrupted; the counterexamples that were found are stored. To go on: certbench audit 'my run' --steps 9\n"
    )


def test_an_audit_says_what_it_found_and_ends_with_its_code(certbench: Run) -> None:
    certbench("run", "little.yaml")
    code, out, _ = certbench("audit", str(FOLDER), "--steps", "5")
    assert code == ExitCode.OK
    assert out.endswith(f"Written: {FOLDER / 'audit.json'}\n")
    write(certifiers=[{"name": "fake", "radius": 100.0}])
    certbench("run", "little.yaml")
    code, out, _ = certbench("audit", str(FOLDER), "--steps", "5")
    assert code == ExitCode.UNSOUND
    assert "UNSOUND: fake(radius=100) on plane, L2, input 0: radius 100, but a counterexample lies at" in out
    assert json.loads((FOLDER / "audit.json").read_text())["unsound"]
    assert certbench("audit", "nowhere")[0] == ExitCode.USAGE
