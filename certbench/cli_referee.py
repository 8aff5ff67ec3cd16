"""The commands that judge: audits, logs of others, comparison, baselines, certificates as files."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer()
out = Console(highlight=False)


@app.command("audit-log")
def audit_log(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Logs of randomized smoothing (tab-separated), VNN-COMP results, known verdicts, instances.csv; or "
            "folders of them."
        ),
    ],
    sigma: Annotated[
        float | None, typer.Option(help="Noise of the certificates. [default: what the path states, or the radii fit]")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Draws per certificate, as claimed.", min=1)] = None,
    alpha: Annotated[float | None, typer.Option(help="Probability of error per certificate, as claimed.")] = None,
    classes: Annotated[int | None, typer.Option(help="How many there are, to check labels.", min=1)] = None,
    radius: Annotated[list[float] | None, typer.Option(help="Where accuracy is shown; may be given again.")] = None,
    published: Annotated[Path | None, typer.Option(help="CSV of published accuracies to compare with.")] = None,
    into: Annotated[Path | None, typer.Option("--json", help="Write everything found here.")] = None,
) -> None:
    """Recompute and check what somebody else's certification logs claim."""
    from certbench import foreign_logs

    raise typer.Exit(
        foreign_logs.run(
            files,
            out,
            sigma=sigma,
            n=n,
            alpha=alpha,
            classes=classes,
            radii=radius or (),
            published=published,
            json_file=into,
        )
    )
