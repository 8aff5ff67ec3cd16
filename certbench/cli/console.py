"""The two streams that the commands print to."""

import os
import shlex
import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text


class Lasting(Console):
    """A stream that falls silent when nobody reads it any more (`| head`), and ends nothing."""

    def on_broken_pipe(self) -> None:
        """Write to nowhere from now on, what is still in buffers too."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


out, err = Lasting(highlight=False), Lasting(stderr=True, highlight=False)


def show(parts: Iterable[Table | Text | str], stream: Console = out) -> None:
    """Print tables and lines; text is printed as it is, and a line stays one line."""
    for part in parts:
        stream.print(part, markup=False, soft_wrap=not isinstance(part, Table))


def again() -> str:
    """Return the command line of this call, so that a message can tell users to repeat it."""
    return shlex.join(["certbench", *sys.argv[1:]])
