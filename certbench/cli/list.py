"""The command `certbench list`."""

import json

from rich.table import Table

from certbench.cli.console import out
from certbench.core import registry
from certbench.models.cards import cards
from certbench.runs.shipped import suites


def list_() -> None:
    """List certifiers, models and suites."""
    table = Table("certifier", "method", box=None, pad_edge=False)
    for name in sorted(registry.table()):
        table.add_row(name, registry.summary(name))
    out.print(table)
    table = Table("model", "architecture", "recipe", "accuracy", box=None, pad_edge=False)
    for name, path in cards().items():
        card = json.loads(path.read_text(encoding="utf-8"))
        table.add_row(name, str(card["architecture"]), str(card["recipe"]), f"{100 * card['accuracy']['test']:.1f} %")
    out.print(table)
    table = Table("suite", "description", box=None, pad_edge=False)
    for name, path in suites().items():
        table.add_row(name, path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# "))
    out.print(table)
