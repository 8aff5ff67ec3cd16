"""The common part of the commands that show a run: its tables, and its problems."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from certbench.cli.console import err, out, tell
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
        tell("INCOMPLETE:", "bold yellow", f"{text}{_elsewhere(found.manifest)}")


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
        err.print(f"known: {place}: {entry.kind}: {entry.reason}", soft_wrap=True)
    if verdict.known:
        err.print(f"{len(verdict.known)} problems are known issues", soft_wrap=True)
    for entry in verdict.stale:
        err.print(f"stale: no row has the problem of this known issue any more: {entry}", soft_wrap=True)
    for row in verdict.refuted[:10]:
        place = f"{row.certifier} on {row.model}, norm {row.norm:g}, input {row.input}"
        tell("UNSOUND:", "bold red", f"{place}: radius {row.radius:.6g}, but a counterexample lies at {row.upper:.6g}")
    if verdict.refuted:
        err.print(Text(f"{len(verdict.refuted)} certificates are refuted by counterexamples", style="bold red"))
    elif verdict.unanswered:
        text = f"{len(verdict.unanswered)} rows have no answer; the reasons are below the tables and in the report"
        err.print(text, soft_wrap=True)
    return verdict.exit_code
