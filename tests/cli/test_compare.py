"""The command `compare`: what it prints, what it writes, its exit code."""

import json
from pathlib import Path

from certbench.exit_codes import ExitCode
from tests.cli.conftest import Run, write


def runs(certbench: Run) -> None:
    """Two runs, of which the second is looser."""
    for name, radius in (("old", 0.05), ("new", 0.04)):
        write(certifiers=[{"name": "fake", "radius": radius}])
        certbench("run", "little.yaml", "--out", name)
    # the option is part of the certifier, so that a changed one is another certifier, which fits the old one alone


def test_a_comparison_ends_with_its_code(certbench: Run) -> None:
    runs(certbench)
    code, out, _ = certbench("compare", "old", "old")
    assert (
        code == ExitCode.OK
        and out.startswith("old -> old\n")
        and "There is no difference that the policy forbids." in out
    )
    code, out, _ = certbench("compare", "old", "new")
    assert code == ExitCode.VIOLATED and "The policy is violated." in out
    Path("policy.yaml").write_text("classes: {missing: ignore, looser: ignore}")
    assert certbench("compare", "old", "new", "--policy", "policy.yaml")[0] == ExitCode.OK


def test_a_format_is_printed_or_written(certbench: Run) -> None:
    runs(certbench)
    code, out, _ = certbench("compare", "old", "new", "--format", "json")
    assert json.loads(out)["exit_code"] == code == ExitCode.VIOLATED
    code, text, _ = certbench("compare", "old", "new", "--format", "json", "--out", "deep/out.json")
    assert Path("deep/out.json").read_text() == out and text.startswith("old -> new\n")
    code, _, err = certbench("compare", "old", "new", "--format", "jsn")
    assert code == ExitCode.USAGE and "did you mean 'json'?" in err
    Path("file").touch()
    code, _, err = certbench("compare", "old", "new", "--out", "file/out.txt")
    assert code == ExitCode.STORE and "cannot write" in err
