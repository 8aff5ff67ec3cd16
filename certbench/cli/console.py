"""The two streams that the commands print to."""

import os
import shlex
import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from certbench.files.safe_text import SafeConsole


class Lasting(SafeConsole):
    """A stream that falls silent when nobody reads it any more (`| head`), and ends nothing."""

    def on_broken_pipe(self) -> None:
        """Write to nowhere from now on, what is still in buffers too."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


out, err = Lasting(), Lasting(stderr=True)


def show(parts: Iterable[Table | Text | str], stream: Console = out) -> None:
    """Print tables and lines; a line stays one line."""
    for part in parts:
        stream.print(part, soft_wrap=not isinstance(part, Table))


def tell(mark: str, style: str, text: str, stream: Console = err) -> None:
    """Print a line that begins with a styled mark."""
    stream.print(Text.assemble((mark, style), f" {text}"), soft_wrap=True)


def again() -> str:
    """Return the command line of this call, so that a message can tell users to repeat it."""
    return shlex.join(["certbench", *sys.argv[1:]])
