"""The command `certbench show-network`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from certbench.cli.console import out
from certbench.errors import ConfigError, UnsupportedError
from certbench.models.cards import cards


def show_network(
    model: Annotated[
        str, typer.Argument(help="A model of the zoo by its name, a file (.onnx), or module:function, which makes one.")
    ],
    weights: Annotated[
        Path | None, typer.Option(help="File with its parameters. Without it, they are as the function makes them.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Shape of one input, as 3,32,32. A model of the zoo has its own.")
    ] = None,
    norm: Annotated[str, typer.Option(help="Norm for which certifiers are tried: 1, 2 or inf.")] = "inf",
) -> None:
    """Show a network as certbench reads it, and which certifiers can bound it, or why not."""
    from certbench.core.support import supports
    from certbench.core.threat import ThreatModel
    from certbench.formats import is_whole
    from certbench.formats.factory import load_external
    from certbench.formats.opening import open_model
    from certbench.models import zoo
    from certbench.networks.reading import read

    sizes = None if shape is None else tuple(_size(part) for part in shape.split(","))
    if model in cards():
        classifier = zoo.load(model)
    elif is_whole(model):
        classifier = open_model(model, input_shape=sizes)
    elif sizes is None:
        raise ConfigError(f"give the shape of one input of {model}, for example --shape 3,32,32")
    else:
        classifier = load_external(model, weights, input_shape=sizes)
    try:
        graph = read(classifier)
    except UnsupportedError as error:
        out.print(f"The network cannot be read: {error}", markup=False, soft_wrap=True)
    else:
        table = Table("", "operation", "of", "size", "from", box=None, pad_edge=False)
        for at, node in enumerate(graph.nodes):
            of = " ".join(str(source) for source in node.sources)
            table.add_row(str(at), node.describe(), of, str(node.size), escape(node.origin))
        out.print(table)
        if graph.head is not None:
            out.print(f"The last {graph.head} is left out: it keeps the order of the classes.", markup=False)
    table = Table("certifier", f"L{norm}", box=None, pad_edge=False)
    for found in supports(classifier, ThreatModel(float(norm))):
        answer = f"yes, prepared in {found.seconds:.1f} s" if found.reason is None else f"no: {found.reason}"
        table.add_row(found.certifier, escape(answer))
    out.print(table)


def _size(text: str) -> int:
    if not text.strip().isdigit():
        raise ConfigError(f"{text!r} is no size; write the shape as whole numbers with commas, for example 3,32,32")
    return int(text)
