"""What a command would print."""

import io
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from certbench.cli.console import show


def text_of(parts: Iterable[Table | Text | str], width: int = 200) -> str:
    """Return tables and lines as a terminal of this width shows them, without colours."""
    file = io.StringIO()
    show(parts, Console(file=file, width=width))
    return file.getvalue()
