"""The command `check`."""

from pathlib import Path

from certbench.exit_codes import ExitCode
from tests.cli.conftest import FOLDER, Run, write


def test_files_are_verified_and_the_worst_decides(certbench: Run) -> None:
    write(certifiers=["crown"])
    certbench("run", "little.yaml")
    certbench("export-certificates", str(FOLDER), "--out", "files")
    code, out, _ = certbench("check", "files")
    assert code == ExitCode.OK and out.endswith("3 of 3 accepted\n")
    first, second, _ = sorted(Path("files").glob("plane-*.json"))
    first.write_text(first.read_text().replace('"radius": ', '"radius": 1'))
    code, out, _ = certbench("check", "files")
    assert code == ExitCode.UNSOUND and f"{first}: refused: the seal" in out and out.endswith("2 of 3 accepted\n")
    Path("empty").mkdir()
    code, out, _ = certbench("check", "empty", str(second))
    assert code == ExitCode.USAGE and "empty: unreadable: a folder without certificates" in out
    assert out.endswith("1 of 1 accepted\n")
