"""The two streams that the commands print to."""

import shlex
import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

out, err = Console(highlight=False), Console(stderr=True, highlight=False)


def show(parts: Iterable[Table | Text | str], stream: Console = out) -> None:
    """Print tables and lines; text is printed as it is, and a line stays one line."""
    for part in parts:
        stream.print(part, markup=False, soft_wrap=not isinstance(part, Table))


def again() -> str:
    """Return the command line of this call, so that a message can tell users to repeat it."""
    return shlex.join(["certbench", *sys.argv[1:]])
