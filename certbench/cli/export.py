"""The command `certbench export-certificates`."""

from pathlib import Path
from typing import Annotated

import typer

from certbench.cli.console import show


def export_certificates(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    into: Annotated[Path, typer.Option("--out", help="Folder for the files.")],
    certifier: Annotated[
        str | None, typer.Option(help="Export this certifier's certificates only: a name, or a label in tables.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Export this model's certificates only.")] = None,
    norm: Annotated[float | None, typer.Option(help="Export certificates in this norm only: 1, 2 or inf.")] = None,
    inputs: Annotated[
        list[int] | None,
        typer.Option("--input", help="Export certificates of this input only; may be given several times."),
    ] = None,
) -> None:
    """Write each certificate of a run as a file, with the evidence that `certbench check` verifies."""
    from certbench.export import exporter
    from certbench.export.proof import LEAST

    found = exporter.export_certificates(
        folder, into, certifier=certifier, model=model, norm=norm, inputs=inputs or None
    )
    show([f"{len(found.files)} certificates written to {found.folder}"])
    if found.lowered:
        show([f"{found.lowered} of them claim a little less than the run does (at least {LEAST:g} of it)"])
    show(f"{number} not written: {reason}" for reason, number in found.refused.items())
    raise typer.Exit(found.exit_code)
