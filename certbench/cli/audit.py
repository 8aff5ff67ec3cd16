"""The command `certbench audit`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from certbench.cli.console import again, err, out, show
from certbench.exit_codes import ExitCode
from certbench.files.safe_text import terminal


def audit(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    inputs: Annotated[int | None, typer.Option(help="Number of inputs, from the first. [default: all]", min=1)] = None,
    steps: Annotated[int, typer.Option(help="Steps of each attack.", min=1)] = 200,
    seed: Annotated[
        int, typer.Option(help="Seed of the attacks' starts, and of the draws that judge smoothing.", min=0)
    ] = 1,
    only: Annotated[str | None, typer.Option(help="Audit this certifier only: a name, or a label in tables.")] = None,
    seconds: Annotated[
        float, typer.Option(help="Time for bounds and attacks; rows that they do not reach are listed.", min=0)
    ] = 600.0,
    floats: Annotated[
        bool, typer.Option("--floats", help="Also bound margins in float32, one by one, and with two threads.")
    ] = False,
) -> None:
    """Attack every certificate of a run, bound it again, hold it against the others; store the counterexamples."""
    from certbench.auditing import audit as auditing
    from certbench.auditing.output import told

    try:
        with out.status("attacks") as status:
            found = auditing.audit(
                folder,
                inputs=inputs,
                steps=steps,
                seed=seed,
                only=only,
                seconds=seconds,
                floats=floats,
                watch=lambda text: status.update(Text(terminal(text))),
            )
    except KeyboardInterrupt:
        text = f"interrupted; the counterexamples that were found are stored. To go on: {again()}"
        err.print(text, soft_wrap=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    show(told(found))
    raise typer.Exit(found.exit_code)
