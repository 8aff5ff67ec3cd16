"""The command `certbench report`."""

from pathlib import Path
from typing import Annotated

import typer

from certbench.cli.console import out
from certbench.cli.results import Known, known_issues, print_verdict, read


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown too.")] = False,
    known: Known = None,
) -> None:
    """Write a run's HTML report again from the stored rows."""
    from certbench.report import tables
    from certbench.report.html import write_report
    from certbench.results import metrics
    from certbench.results.folder import radii

    found = read(folder)
    path = write_report(folder, found.manifest, found.rows, found.estimates, found.missing)
    if markdown:
        summaries = metrics.summarise(found.rows, radii(found.manifest))
        text = tables.markdown(summaries, metrics.summarise_estimates(found.estimates))
        out.document(text)
    out.print(f"Report: {path}", soft_wrap=True)
    raise typer.Exit(print_verdict(found.rows, known_issues(known), found.missing))
