r"""Text of others, made safe for each kind of output: names and reasons must not act, nor pass for our own words.

Characters that a terminal or a browser would act upon become visible: `\x1b`, `\u202e`, `\n`. So a name stays on its
line, in its order, and cannot print a line of its own.
"""

import re
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from certbench.files.numbers import is_number

FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"
"""Characters with which a spreadsheet begins a formula."""

MARKDOWN = re.compile(
    r"[\\`*_|<\[~$]|&(?=#?\w+;)|:(?=//)|www\.|(?<=\w)@(?=\w)|^[#>]|^[-+=](?=[-=\s])|^\d+[.)](?=\s|$)", re.IGNORECASE
)
"""Pattern of what Markdown acts upon inside a line, and at its beginning; GitHub's additions too."""


def terminal(text: str) -> str:
    """Return text as one line, in which all that a terminal would act upon is visible."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def lines(text: str) -> str:
    """Return a text of several lines, each of them safe for a terminal."""
    return "\n".join(terminal(line.expandtabs(4)) for line in text.split("\n"))


def markdown(text: str) -> str:
    """Return text that Markdown shows unchanged, in one line or one cell of a table; it makes no link."""
    return MARKDOWN.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", terminal(" ".join(text.split())))


def csv(value: Any) -> Any:
    """Return the cell of a CSV so that no spreadsheet computes it: text that looks like a formula gets an apostrophe.

    Numbers stay as they are, also those that are text.
    """
    if not isinstance(value, str):
        return value
    text = terminal(value)
    return f"'{text}" if text.startswith(tuple(FORMULA)) and not is_number(text) else text


def html(value: Any) -> Any:
    """Return a value for a page in which hidden characters are visible; `<` and `&` are the template's business.

    It is the `finalize` of a template. Line breaks stay: in a page they are blanks.
    """
    return lines(value) if type(value) is str else value


class SafeConsole(Console):
    """A console that prints the words of others and no others' commands: nothing in a text is markup.

    A text is one line, and so is a cell of a table; `document` prints several lines.
    """

    def __init__(self, **settings: Any) -> None:
        """Take the settings of rich's console."""
        super().__init__(**settings, markup=False, emoji=False, highlight=False)

    def print(self, *parts: Any, **settings: Any) -> None:
        """Print tables and lines."""
        super().print(*map(safe, parts), **settings)

    def document(self, text: str) -> None:
        """Print a text of several lines as it is, but for what a terminal would act upon."""
        super().print(Text(lines(text)), soft_wrap=True, end="" if text.endswith("\n") else "\n")


def safe(part: Any) -> Any:
    """Make a text, a table or its cell safe for a terminal. Tables and styled texts are changed in place."""
    if isinstance(part, str):
        return terminal(part)
    if isinstance(part, Text) and not part.plain.isprintable():
        return _styled(part)
    if isinstance(part, Padding):
        part.renderable = safe(part.renderable)
    elif isinstance(part, Table):
        part.title, part.caption = safe(part.title), safe(part.caption)
        for column in part.columns:
            column.header, column.footer = safe(column.header), safe(column.footer)
            column._cells[:] = map(safe, column._cells)  # rich gives no other way to the cells
    return part


def _styled(text: Text) -> Text:
    """Return a styled text whose letters are visible, each in its style."""
    made = Text(style=text.style, justify=text.justify, overflow=text.overflow, no_wrap=text.no_wrap, end=text.end)
    for letter in text.divide(range(1, len(text))):
        letter.plain = terminal(letter.plain)
        made.append_text(letter)
    return made
