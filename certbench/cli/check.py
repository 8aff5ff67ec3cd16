"""The command `certbench check`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from certbench.cli.console import show


def check(
    files: Annotated[list[Path], typer.Argument(help="Files of `certbench export-certificates`, or folders of them.")],
) -> None:
    """Re-verify certificates with the independent checker; exit code 3 means that one does not prove its claim."""
    for name in ("OPENBLAS", "MKL", "OMP"):  # matrices are small: threads would wait for one another
        os.environ.setdefault(f"{name}_NUM_THREADS", "1")
    from certbench import checker

    checked = checker.check(files, lambda file, verdict: show([checker.told(file, verdict)]))
    show([checked.summary])
    raise typer.Exit(checked.exit_code)
