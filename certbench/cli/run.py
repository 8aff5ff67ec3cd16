"""The command `certbench run`."""

from pathlib import Path
from typing import Annotated

import typer

from certbench.cli.console import again, err, out
from certbench.cli.progress import ProgressWatcher
from certbench.cli.results import Known, known_issues, print_table, print_verdict
from certbench.core import registry
from certbench.errors import ConfigError, StoreError
from certbench.exit_codes import ExitCode
from certbench.results.folder import RESULTS


def run(
    suite: Annotated[str, typer.Argument(help="A shipped suite (see `certbench list`), or the path of a .yaml file.")],
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder of the run. [default: reports/runs/NAME]", show_default=False)
    ] = None,
    rerun: Annotated[
        str, typer.Option(help="Stored outcomes to compute again: errors, timeouts, unsupported, all or none.")
    ] = "errors",
    threads: Annotated[int, typer.Option(help="Number of torch's threads, in each process.", min=1)] = 1,
    executor: Annotated[
        str | None,
        typer.Option(
            help="Who computes: process (workers of their own, with hard limits) or inline. [default: the suite's]",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Number of processes; 0: as many as cores. [default: the suite's]", min=0, show_default=False
        ),
    ] = None,
    known: Known = None,
) -> None:
    """Run a suite, or what is left of it: rows that are stored already are not computed again."""
    from certbench.runs import server

    likely = folder or Path("reports/runs") / Path(suite).stem
    if executor in (None, "process") and not (likely / RESULTS).exists():
        server.start()  # it imports while this process does
    from certbench.report.html import write_report
    from certbench.runs.run import RERUN
    from certbench.runs.run import run as run_suite
    from certbench.runs.suite import load

    if rerun not in RERUN:
        raise ConfigError(registry.unknown("choice of --rerun", rerun, RERUN))
    loaded, issues = load(suite), known_issues(known)
    folder = folder or Path("reports/runs") / loaded.settings.name
    with ProgressWatcher() as watcher:
        try:
            finished = run_suite(
                loaded, folder, watcher, rerun=rerun, threads=threads, executor=executor, workers=workers
            )
        except KeyboardInterrupt:
            watcher.stop()
            err.print(f"interrupted; computed rows are stored. To go on: {again()}", markup=False, soft_wrap=True)
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except StoreError:
            watcher.stop()
            err.print(f"To go on once this is solved: {again()}", markup=False, soft_wrap=True)
            raise
    path = write_report(folder, finished.manifest, finished.rows, finished.estimates)
    print_table(finished.manifest, finished.rows, finished.estimates)
    counted = f"{len(finished.rows)} rows, {finished.computed} computed now. Report: {path}"
    out.print(counted, markup=False, soft_wrap=True)
    code = print_verdict(finished.rows, issues)
    if finished.unaudited:
        err.print(f"the attacks failed on {finished.unaudited} inputs; their certificates are not audited")
    raise typer.Exit(ExitCode.INCOMPLETE if finished.unaudited and code is ExitCode.OK else code)
