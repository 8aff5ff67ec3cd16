"""The command `certbench train`."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from certbench.cli.console import out
from certbench.models.cards import cards


def train(
    model: Annotated[str, typer.Argument(help="A model of the zoo; see `certbench list`.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder for the weights and their card.")] = Path("trained"),
) -> None:
    """Train a model of the zoo from scratch and compare it with the shipped one."""
    from certbench.models import zoo

    start = time.perf_counter()
    card = zoo.train(model, folder)
    seconds = time.perf_counter() - start
    new = card["accuracy"]["test"]
    out.print(f"{folder / model}.safetensors: test accuracy {100 * new:.1f} %, {seconds:.0f} s", soft_wrap=True)
    if model in cards():
        old = json.loads(cards()[model].read_text(encoding="utf-8"))["accuracy"]["test"]
        out.print(
            f"shipped weights: {100 * old:.1f} %, a difference of {100 * (new - old):+.1f} points", soft_wrap=True
        )
