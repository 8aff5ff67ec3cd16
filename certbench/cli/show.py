"""The command `certbench show`."""

import inspect
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from certbench.cli.console import out
from certbench.cli.results import Known, known_issues, print_table, print_verdict, read
from certbench.core import registry
from certbench.errors import ConfigError
from certbench.models.cards import cards
from certbench.runs.shipped import suites


def show(
    thing: Annotated[str, typer.Argument(help="A certifier, a model or a suite by its name; or the folder of a run.")],
    known: Known = None,
) -> None:
    """Show a certifier's options, a model's card, a suite's text, or a run's table."""
    from certbench.results.folder import is_run

    if is_run(Path(thing)):
        found = read(Path(thing))
        print_table(found.manifest, found.rows, found.estimates)
        raise typer.Exit(print_verdict(found.rows, known_issues(known), found.missing))
    if thing in registry.table() or thing in registry.FORMER:
        _show_certifier(thing)
    elif thing in cards():
        out.document(cards()[thing].read_text(encoding="utf-8"))
    elif thing in suites():
        out.document(suites()[thing].read_text(encoding="utf-8"))
    else:
        names = [*registry.table(), *cards(), *suites()]
        raise ConfigError(registry.unknown("name or run", thing, names))


def _show_certifier(name: str) -> None:
    from certbench.core.options import describe_options

    found = registry.find(name)
    norms = ", ".join(f"L{p:g}" for p in sorted(found.norms))
    out.print(f"{name}: {found.guarantee.value}, certifies the {found.subject.value} classifier, {norms}")
    out.document(inspect.getdoc(found) or "")
    table = Table("option", "value", "default", box=None, pad_edge=False)
    for row in describe_options(found):
        table.add_row(*row)
    out.print(table)
