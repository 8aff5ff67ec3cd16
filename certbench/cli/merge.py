"""The command `certbench merge`."""

from pathlib import Path
from typing import Annotated

import typer

from certbench.cli.console import err, out
from certbench.cli.results import Known, known_issues, print_table, print_verdict, said_missing
from certbench.exit_codes import ExitCode


def merge(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs of one suite, as its shards.")],
    into: Annotated[Path, typer.Option("--out", help="Folder of the whole run; it may hold results already.")],
    known: Known = None,
) -> None:
    """Put the shards of a run together, and write the report."""
    from certbench.report.html import write_report
    from certbench.runs.merge import merge as merging

    found = merging(folders, into)
    said_missing(found)
    path = write_report(into, found.manifest, found.rows, found.estimates, found.missing)
    print_table(found.manifest, found.rows, found.estimates)
    out.print(f"{len(found.rows)} rows of {len(folders)} parts. Report: {path}", soft_wrap=True)
    code = print_verdict(found.rows, known_issues(known), found.missing)
    if found.unattacked:
        err.print(f"attacks on {found.unattacked} inputs are missing; their certificates are not audited")
    raise typer.Exit(ExitCode.INCOMPLETE if found.unattacked and code is ExitCode.OK else code)
