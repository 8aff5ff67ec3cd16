"""The command `certbench status`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from certbench.cli.console import out
from certbench.exit_codes import ExitCode


def status(folder: Annotated[Path, typer.Argument(help="Folder of a run, which may be going on.")]) -> None:
    """Say how far a run is: rows, outcomes and time of each pair of model and certifier."""
    from certbench.results.folder import RunFolder

    opened = RunFolder(folder)
    manifest = opened.manifest(lambda found: {**found, "name": str(found["suite"]["name"])})
    with opened.store() as store:
        progress = store.progress()
    table = Table("model", "norm", "certifier", "rows", "left", "no answer", "s/row", box=None, pad_edge=False)
    for one in progress:
        pace = f"{one.seconds / one.done:.3g}" if one.done else ""
        cells = (str(one.done), str(one.planned - one.done), str(one.unanswered), pace)
        table.add_row(one.model, f"L{one.norm:g}", one.certifier, *cells)
    planned, done = sum(one.planned for one in progress), sum(one.done for one in progress)
    state = "done" if done == planned else f"{planned - done} of {planned} rows have not been computed yet"
    shard = f" (shard {manifest['shard']})" if "shard" in manifest else ""
    times = f"started {manifest.get('started')}, " + (
        f"ended {manifest['finished']}" if "finished" in manifest else "not ended"
    )
    out.print(f"{opened.path}: suite {manifest['name']}{shard}: {state}; {times}", soft_wrap=True)
    out.print(table)
    raise typer.Exit(ExitCode.OK if done == planned else ExitCode.INCOMPLETE)
