"""The common part of the commands that show a run: its tables, and its problems."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from certbench.cli.console import err, out
from certbench.exit_codes import ExitCode

if TYPE_CHECKING:
    from certbench.results.folder import RunResults
    from certbench.results.known_issues import KnownIssues
    from certbench.results.rows import Estimate, Row

Known = Annotated[
    Path | None,
    typer.Option("--known", help="File of known issues, which do not decide the exit code.", show_default=False),
]


def known_issues(path: Path | None) -> "KnownIssues":
    """Read a file of known issues, if there is one."""
    from certbench.results.known_issues import KnownIssues, load

    return KnownIssues() if path is None else load(path)


def read(folder: Path) -> "RunResults":
    """Read a run, and say if rows are missing."""
    from certbench.results.folder import read_results

    found = read_results(folder)
    said_missing(found)
    return found


def said_missing(found: "RunResults") -> None:
    """Say if rows are missing, before anything else."""
    if found.missing:
        whole = found.missing + len(found.rows)
        text = f"{found.missing} of {whole} rows of this run have not been computed yet"
        err.print(f"[bold yellow]INCOMPLETE:[/] {text}{_elsewhere(found.manifest)}", soft_wrap=True)


def _elsewhere(manifest: Mapping[str, Any]) -> str:
    """Say where the missing rows of a shard are."""
    shard = manifest.get("shard")
    return f"; this is shard {shard}: put the shards together by certbench merge" if isinstance(shard, str) else ""


def print_table(manifest: Mapping[str, Any], rows: "list[Row]", estimates: "list[Estimate]") -> None:
    """Print the tables of a run."""
    from certbench.report import tables
    from certbench.results import metrics
    from certbench.results.folder import radii

    tables.render(metrics.summarise(rows, radii(manifest)), out, metrics.summarise_estimates(estimates))


def print_verdict(rows: "list[Row]", issues: "KnownIssues", missing: int = 0) -> ExitCode:
    """Print the problems of a run, and return its exit code."""
    from certbench.results.verdict import judge

    verdict = judge(rows, issues, missing)
    for row, entry in verdict.known[:10]:
        place = f"{row.certifier} on {row.model}, norm {row.norm:g}, input {row.input}"
        err.print(f"known: {place}: {entry.kind}: {entry.reason}", markup=False, soft_wrap=True)
    if verdict.known:
        err.print(f"{len(verdict.known)} problems are known issues", soft_wrap=True)
    for entry in verdict.stale:
        err.print(f"stale: no row has the problem of this known issue any more: {entry}", markup=False, soft_wrap=True)
    for row in verdict.refuted[:10]:
        err.print(
            f"[bold red]UNSOUND:[/] {escape(row.certifier)} on {escape(row.model)}, norm {row.norm:g}, "
            f"input {row.input}: radius {row.radius:.6g}, but a counterexample lies at {row.upper:.6g}",
            soft_wrap=True,
        )
    if verdict.refuted:
        err.print(f"[bold red]{len(verdict.refuted)} certificates are refuted by counterexamples[/]")
    elif verdict.unanswered:
        text = f"{len(verdict.unanswered)} rows have no answer; the reasons are below the tables and in the report"
        err.print(text, soft_wrap=True)
    return verdict.exit_code
