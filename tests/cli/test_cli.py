"""The command line as a whole: unknown words, exit codes, and no heavy import for a light question."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from certbench import cli
from certbench.cli import baseline, console
from certbench.core import registry
from certbench.exit_codes import ExitCode
from certbench.version import __version__
from tests.cli.conftest import FOLDER, Run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "defualt"), "unknown suite 'defualt'; did you mean 'default'?"),
        (("run", "missing.yaml"), "cannot read the suite missing.yaml"),
        (("run", "little.yaml", "--rerun", "error"), "did you mean 'errors'?"),
        (("run", "little.yaml", "--threads", "0"), "threads"),
        (("show", "crwon"), "unknown name or run 'crwon'; did you mean 'crown'?"),
        (("show", "mlp-plian"), "did you mean 'mlp-plain'?"),
        (("report", "nowhere"), "nowhere is not the folder of a run"),
        (("train", "lineer"), "did you mean 'linear'?"),
        (("rnu",), "rnu"),
    ],
)
def test_what_is_unknown_is_refused_with_the_nearest(certbench: Run, arguments: tuple[str, ...], words: str) -> None:
    code, _, err = certbench(*arguments)
    assert code == ExitCode.USAGE
    assert words in err


def test_ctrl_c_at_another_moment_is_one_word(certbench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "summary", interrupt)
    code, _, err = certbench("list")
    assert (code, err) == (ExitCode.INTERRUPTED, "interrupted\n")


def test_light_questions_import_nothing_heavy(certbench: Run) -> None:
    certbench("run", "little.yaml")
    code = f"""
import sys
from certbench import cli
folder = {str(FOLDER)!r}
commands = ["--help"], ["run", "--help"], ["list"], ["report", folder], ["show", folder], ["compare", folder, folder]
for arguments in commands:
    sys.argv = ["certbench", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, arguments
    heavy = {{"torch", "scipy", "cvxpy", "sklearn", "foolbox", "auto_LiRPA"}} & sys.modules.keys()
    heavy |= {{"numpy"}} & sys.modules.keys() if "compare" not in arguments else set()  # which counts are read with
    assert not heavy, (arguments, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_help_names_the_exit_codes(certbench: Run) -> None:
    out = " ".join(certbench("--help")[1].split())
    assert [code for code in ExitCode if f"{code.value} {code.meaning}" not in out] == []
    assert len({code.meaning for code in ExitCode}) == len(ExitCode)


def test_a_command_is_a_file_with_a_function_and_a_line(certbench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")}
    helpers = {"__init__", "__main__", "console", "progress", "results"}
    callbacks = [command.callback for command in (*cli.app.registered_commands, *baseline.app.registered_commands)]
    assert {callback.__module__ for callback in callbacks if callback} == {
        f"certbench.cli.{name}" for name in files - helpers
    }

    def greet(name: str) -> None:
        """Say hello."""
        console.show([f"hello {name}"])

    monkeypatch.setattr(cli.app, "registered_commands", [*cli.app.registered_commands])
    cli.app.command()(greet)
    assert certbench("greet", "[b]you")[:2] == (ExitCode.OK, "hello [b]you\n")
    assert "Say hello." in certbench("--help")[1]


def test_the_version_is_printed(certbench: Run) -> None:
    assert certbench("--version")[1].strip() == cli.__version__


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "certbench", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, __version__)


def test_what_nobody_foresaw_has_a_code_and_a_log(
    certbench: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stumble(name: str) -> str:
        raise ZeroDivisionError(f"for {name}\x1b[2J")

    monkeypatch.setattr(registry, "summary", stumble)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "logs"))
    code, _, err = certbench("list")
    assert code == ExitCode.INTERNAL and "the traceback cannot be written" in err
    (tmp_path / "logs").mkdir()
    code, _, err = certbench("list")
    (log,) = (tmp_path / "logs").iterdir()
    assert code == ExitCode.INTERNAL and err.startswith("internal error: ZeroDivisionError: for") and str(log) in err
    assert "\x1b" not in err and "Traceback" in log.read_text() and "certbench list" in log.read_text()


def test_paths_that_no_file_can_have_are_refused(certbench: Run) -> None:
    for command in ("recertify", "report", "show", "run", "validate", "check", "audit-log"):
        assert certbench(command, "x" * 5000)[0] in (ExitCode.USAGE, ExitCode.UNSOUND)
