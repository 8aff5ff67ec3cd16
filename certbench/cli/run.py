"""The command `certbench run`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from certbench.cli.console import again, err, out
from certbench.cli.progress import ProgressWatcher, lasting
from certbench.cli.results import Known, known_issues, print_table, print_verdict
from certbench.core import registry
from certbench.errors import ConfigError, StoreError
from certbench.exit_codes import ExitCode
from certbench.results.folder import RESULTS

if TYPE_CHECKING:
    from certbench.runs.suite import Suite


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
            help="Who computes: process (workers of their own, with hard limits), ray (a cluster) or inline. "
            "[default: the suite's]",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Number of processes; 0: as many as cores. [default: the suite's]", min=0, show_default=False
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Address of a cluster of Ray, as 10.0.0.1:6379 or auto. [default: $RAY_ADDRESS, or this machine]",
            show_default=False,
        ),
    ] = None,
    inputs: Annotated[
        int | None, typer.Option(help="Number of inputs. [default: the suite's]", min=1, show_default=False)
    ] = None,
    models: Annotated[str, typer.Option(help="Models of the suite or the zoo, as cnn-plain,mlp-plain.")] = "",
    certifiers: Annotated[str, typer.Option(help="Certifiers of the suite or the table, as crown,ibp.")] = "",
    norms: Annotated[str, typer.Option(help="Norms, as L2,Linf.")] = "",
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change a setting: attacks.steps=0, or certifiers.crown.engine=own.", show_default=False
        ),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="Part of the inputs, as 2/8; see `certbench merge`.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be computed, and end.")] = False,
    known: Known = None,
) -> None:
    """Run a suite, or what is left of it: rows that are stored already are not computed again."""
    from certbench.runs import server

    likely = folder or Path("reports/runs") / Path(suite).stem
    if executor in (None, "process") and not (likely / RESULTS).exists():
        server.start()  # it imports while this process does
    from certbench.report.html import write_report
    from certbench.runs.run import RERUN, Shard
    from certbench.runs.run import run as run_suite
    from certbench.runs.selection import Selection
    from certbench.runs.suite import load

    if rerun not in RERUN:
        raise ConfigError(registry.unknown("choice of --rerun", rerun, RERUN))
    part = None if shard is None else Shard.read(shard)
    selection = Selection(inputs, _names(models), _names(certifiers), _names(norms), tuple(changes or ()))
    loaded, issues = load(suite, selection), known_issues(known)
    folder = folder or Path("reports/runs") / loaded.settings.name
    if dry_run:
        _preview(loaded, folder, rerun)
        return
    with ProgressWatcher() as watcher:
        try:
            finished = run_suite(
                loaded, folder, watcher, rerun=rerun, threads=threads, executor=executor, workers=workers,
                address=address, shard=part,
            )  # fmt: skip
        except KeyboardInterrupt:
            watcher.stop()
            err.print(f"interrupted; computed rows are stored. To go on: {again()}", soft_wrap=True)
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except StoreError:
            watcher.stop()
            err.print(f"To go on once this is solved: {again()}", soft_wrap=True)
            raise
    path = write_report(folder, finished.manifest, finished.rows, finished.estimates, finished.missing)
    print_table(finished.manifest, finished.rows, finished.estimates)
    counted = f"{len(finished.rows)} rows; {finished.computed} rows and attacks computed now. Report: {path}"
    out.print(counted, soft_wrap=True)
    if finished.missing:
        err.print(f"{finished.missing} rows belong to other shards; put them together by certbench merge")
    code = print_verdict(finished.rows, issues)
    if finished.unaudited:
        err.print(f"the attacks failed on {finished.unaudited} inputs; their certificates are not audited")
    raise typer.Exit(ExitCode.INCOMPLETE if finished.unaudited and code is ExitCode.OK else code)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _preview(suite: "Suite", folder: Path, rerun: str) -> None:
    """Print what a run would compute, and what that takes."""
    from certbench.core.memory import written
    from certbench.runs.preview import preview

    table = Table(box=None, pad_edge=False)
    for name in ("model", "threat", "certifier"):
        table.add_column(name, overflow="fold")
    for name in ("rows", "stored", "time", "memory"):
        table.add_column(name, no_wrap=True, justify="right")
    refused, known, unknown = list[str](), 0.0, 0
    for one in preview(suite, folder, rerun):
        left = one.rows > one.stored and one.reason is None
        seconds = "" if not left else "unknown" if one.seconds is None else lasting(one.seconds)
        memory = "" if not left else "unknown" if one.memory is None else written(one.memory)
        table.add_row(one.model, one.threat, one.certifier, str(one.rows), str(one.stored), seconds, memory)
        known, unknown = known + (one.seconds or 0.0), unknown + (one.seconds is None)
        if one.reason is not None:
            refused.append(f"unsupported: {one.certifier} on {one.model}, {one.threat}: {one.reason}")
    out.print(table)
    for line in refused:
        out.print(line, soft_wrap=True)
    missing = f", and {unknown} pair{'' if unknown == 1 else 's'} of unknown time" if unknown else ""
    out.print(f"In all {lasting(known)} of one worker{missing}.")
    out.print(
        "Time: at the pace of stored rows, else predicted from sizes, which may be 3 times too high or low; "
        "preparations and attacks come on top. Memory: of one batch, at most. "
        "A certifier that is not named as unsupported may still refuse when it prepares."
    )
