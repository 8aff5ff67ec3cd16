"""The command `certbench compare`."""

from pathlib import Path
from typing import Annotated

import typer

from certbench.cli.console import out, show


def compare(
    old: Annotated[
        Path, typer.Argument(help="What it was: the folder of a run, a baseline, or JSON of pytest-benchmark.")
    ],
    new: Annotated[Path, typer.Argument(help="What it is: likewise.")],
    policy: Annotated[
        Path | None,
        typer.Option(help="A .yaml file: which differences fail. [default: see docs/ci.md]", show_default=False),
    ] = None,
    known: Annotated[Path | None, typer.Option(help="A .yaml file of known issues, which do not fail.")] = None,
    shape: Annotated[str, typer.Option("--format", help="text, markdown, json or junit.")] = "text",
    into: Annotated[Path | None, typer.Option("--out", help="A file for it; the text is printed then.")] = None,
) -> None:
    """Say row by row what was lost, gained, became looser, tighter or wrong; the exit code follows the policy."""
    from certbench.comparison import compare as comparing
    from certbench.comparison import output
    from certbench.files.writing import write

    shaped = output.shape_of(shape)
    comparison = comparing.compare(old, new, policy=policy, known=known)
    if into is not None:
        write(into, shaped(comparison), create_folder=True)
    if into is None and shape != "text":
        out.print(shaped(comparison), markup=False, soft_wrap=True, end="")
    else:
        show(output.told(comparison))
    raise typer.Exit(comparison.exit_code)
