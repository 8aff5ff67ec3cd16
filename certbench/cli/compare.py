"""The command `certbench compare`."""

from pathlib import Path
from typing import Annotated

import typer

from certbench.cli.console import out, show


def compare(
    old: Annotated[
        Path, typer.Argument(help="Old side: the folder of a run, a baseline, or JSON of pytest-benchmark.")
    ],
    new: Annotated[Path, typer.Argument(help="New side: one of the same.")],
    policy: Annotated[
        Path | None,
        typer.Option(
            help="A .yaml file that says which differences fail. [default: see docs/ci.md]", show_default=False
        ),
    ] = None,
    known: Annotated[
        Path | None, typer.Option(help="A .yaml file of known issues, which do not make the comparison fail.")
    ] = None,
    shape: Annotated[str, typer.Option("--format", help="Format: text, markdown, json or junit.")] = "text",
    into: Annotated[
        Path | None, typer.Option("--out", help="File for the result in this format; the text is printed as well.")
    ] = None,
) -> None:
    """Say row by row what was lost or gained, and what became looser, tighter or wrong; exit as the policy says."""
    from certbench.comparison import compare as comparing
    from certbench.comparison import output
    from certbench.files.writing import write

    shaped = output.shape_of(shape)
    comparison = comparing.compare(old, new, policy=policy, known=known)
    if into is not None:
        write(into, shaped(comparison), create_folder=True)
    if into is None and shape != "text":
        out.document(shaped(comparison))
    else:
        show(output.told(comparison))
    raise typer.Exit(comparison.exit_code)
