"""The command `certbench audit-log`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from certbench.cli.console import show


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
    classes: Annotated[int | None, typer.Option(help="Number of classes, to check labels.", min=1)] = None,
    radius: Annotated[
        list[float] | None, typer.Option(help="Radius at which accuracy is shown; may be given several times.")
    ] = None,
    published: Annotated[
        Path | None,
        typer.Option(
            help="CSV of published accuracies to compare with: columns radius and accuracy in percent; log (end of a "
            "log's path), or dataset and network with sigma=...; n and alpha if they are stated."
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a VNN-COMP benchmark (instances.csv, networks, properties): counterexamples beside the "
            "results are replayed, answers are proved or refuted."
        ),
    ] = None,
    limit: Annotated[float, typer.Option(help="Seconds for each instance that no counterexample decides.")] = 10.0,
    category: Annotated[
        str,
        typer.Option(help="Category of that benchmark, as the results have it. [default: the folder's name]"),
    ] = "",
    into: Annotated[Path | None, typer.Option("--json", help="JSON file for all findings.")] = None,
) -> None:
    """Recompute and check what somebody else's certification logs claim."""
    from certbench.external import audit_log as logs
    from certbench.external.output import told
    from certbench.files.writing import write

    found = logs.audit_log(
        files,
        sigma=sigma,
        n=n,
        alpha=alpha,
        classes=classes,
        radii=radius or (),
        published=published,
        root=root,
        limit=limit,
        category=category,
    )
    show(told(found))
    if into is not None:
        write(into, json.dumps(logs.record(found), indent=1, default=str) + "\n")
    raise typer.Exit(found.exit_code)
