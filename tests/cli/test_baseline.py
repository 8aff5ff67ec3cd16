"""The commands `baseline update` and `baseline show`."""

from pathlib import Path

from certbench.exit_codes import ExitCode
from tests.cli.conftest import FOLDER, Run, write


def test_a_run_becomes_a_baseline_that_is_shown_and_compared(certbench: Run) -> None:
    certbench("run", "little.yaml")
    file = Path("reports/little/baseline.json")
    code, out, _ = certbench("baseline", "update", str(FOLDER), "--reason", "first")
    assert (code, out) == (ExitCode.OK, f"{file}: 3 rows, new\n")
    code, out, _ = certbench("baseline", "show", str(file))
    assert code == ExitCode.OK
    assert out.startswith(f"{file}: 3 rows of 1 models\n") and "first  (3 rows, new)" in out
    assert certbench("compare", str(file), str(FOLDER))[0] == ExitCode.OK


def test_a_run_that_is_wrong_becomes_none(certbench: Run) -> None:
    write(certifiers=[{"name": "fake", "radius": 100.0}], attacks={"steps": 5})
    certbench("run", "little.yaml")
    code, out, _ = certbench("baseline", "update", str(FOLDER), "--reason", "no", "--file", "b.json")
    assert code == ExitCode.UNSOUND and not Path("b.json").exists()
    assert "The baseline stays: 3 rows are wrong, 0 have not been computed." in out
    assert out.endswith(f"Next: certbench audit {FOLDER}.\n")
    assert certbench("baseline", "show", str(FOLDER))[0] == ExitCode.USAGE
