"""The commands `certbench baseline update` and `certbench baseline show`."""

from pathlib import Path
from typing import Annotated

import typer

from certbench.cli import console

app = typer.Typer(help="Write and show baselines: the rows of a run, as a file to commit.", no_args_is_help=True)


@app.command()
def update(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    reason: Annotated[str, typer.Option(help="Why the baseline changes; kept in the file.")],
    file: Annotated[
        Path | None,
        typer.Option(help="File of the baseline. [default: reports/NAME/baseline.json]", show_default=False),
    ] = None,
) -> None:
    """Make a run the baseline; a run with refuted radii or missing rows is refused."""
    from certbench.comparison.output import told_update
    from certbench.comparison.update import update_baseline

    found = update_baseline(folder, reason, file)
    console.show(told_update(found))
    raise typer.Exit(found.exit_code)


@app.command()
def show(file: Annotated[Path, typer.Argument(help="A baseline.")]) -> None:
    """Show the rows of a baseline, and why it changed."""
    from certbench.comparison.baseline import read_baseline
    from certbench.comparison.output import told_baseline

    console.show(told_baseline(read_baseline(file)))
