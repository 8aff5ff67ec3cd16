"""The command `certbench validate`."""

from typing import Annotated

import typer

from certbench.cli.console import out


def validate(suite: Annotated[str, typer.Argument(help="A shipped suite, or the path of a .yaml file.")]) -> None:
    """Check a suite, its models and its data, without running it."""
    from certbench.runs.plan import plan
    from certbench.runs.suite import load

    loaded = load(suite)
    pairs = plan(loaded)
    valid = f"{loaded.source} is valid: {pairs} pairs of {loaded.settings.inputs} inputs"
    out.print(valid, soft_wrap=True)
