"""The command `certbench show-network`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from certbench.cli.console import out
from certbench.errors import ConfigError, UnsupportedError


def show_network(
    model: Annotated[
        str, typer.Argument(help="A model of the zoo, a file (.onnx, .pt2), or module:function, which makes one.")
    ],
    weights: Annotated[
        Path | None, typer.Option(help="File with its parameters. Without it, they are as the function makes them.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Shape of one input, as 3,32,32. A model of the zoo has its own.")
    ] = None,
    trust: Annotated[bool, typer.Option(help="Allow a pickled module to run its code when it is opened.")] = False,
    norm: Annotated[str, typer.Option(help="Norm for which certifiers are tried: 1, 2 or inf.")] = "inf",
) -> None:
    """Show a network as certbench reads it, and which certifiers can bound it, or why not."""
    from certbench.core.support import supports
    from certbench.core.threat import ThreatModel
    from certbench.networks.reading import read
    from certbench.runs.models import load

    sizes = sizes_of(shape)
    classifier = load(model, weights, input_shape=sizes, trust=trust)
    try:
        graph = read(classifier)
    except UnsupportedError as error:
        out.print(f"The network cannot be read: {error}", soft_wrap=True)
    else:
        table = Table("", "operation", "of", "size", "from", box=None, pad_edge=False)
        for at, node in enumerate(graph.nodes):
            of = " ".join(str(source) for source in node.sources)
            table.add_row(str(at), node.describe(), of, str(node.size), node.origin)
        out.print(table)
        if graph.head is not None:
            out.print(f"The last {graph.head} is left out: it keeps the order of the classes.")
    table = Table("certifier", f"L{norm}", box=None, pad_edge=False)
    for found in supports(classifier, ThreatModel(float(norm))):
        answer = f"yes, prepared in {found.seconds:.1f} s" if found.reason is None else f"no: {found.reason}"
        table.add_row(found.certifier, answer)
    out.print(table)


def sizes_of(shape: str | None) -> tuple[int, ...] | None:
    """Read a shape that is written as `3,32,32`.

    Raises:
        ConfigError: it is written in another way.
    """
    if shape is None:
        return None
    parts = [part.strip() for part in shape.split(",")]
    if not all(part.isdigit() for part in parts):
        raise ConfigError(f"{shape!r} is no shape; write whole numbers with commas, for example 3,32,32")
    return tuple(int(part) for part in parts)
