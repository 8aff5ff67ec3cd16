"""Text of others neither acts nor passes for our own words, whatever the output."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console
from rich.table import Table
from rich.text import Text

from certbench.files import safe_text
from certbench.files.safe_text import SafeConsole
from tests.support.nasty import NASTY, hidden


@given(st.text() | st.sampled_from(NASTY))
def test_a_text_is_one_line_that_no_terminal_acts_upon(text: str) -> None:
    shown = safe_text.terminal(text)
    assert shown.isprintable() and safe_text.terminal(shown) == shown
    assert shown == text or not text.isprintable()


@given(st.text() | st.sampled_from(NASTY) | st.text("-+=#>1.) \t\n[]()<>!|~`*_:/w.@&;a", max_size=12))
def test_markdown_shows_a_text_unchanged(text: str) -> None:
    wanted = safe_text.terminal(" ".join(text.split()))
    if wanted in ("-", "+"):  # they stay as they are, because tables are full of them
        return
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for written in (f"- {safe_text.markdown(text)}\n", f"| a |\n| --- |\n| {safe_text.markdown(text)} |\n"):
        inner = [token for token in parser.parse(written) if token.type == "inline"]
        assert {part.type for token in inner for part in token.children or ()} <= {"text", "text_special"}
        words = "".join(part.content for token in inner[-1:] for part in token.children or ())
        assert not wanted or words.strip() == wanted


@pytest.mark.parametrize("text", NASTY)
def test_a_spreadsheet_computes_no_cell(text: str) -> None:
    file = io.StringIO()
    csv.writer(file).writerow([safe_text.csv(text), "next"])
    ((cell, after),) = csv.reader(io.StringIO(file.getvalue()))
    assert after == "next" and cell[:1] not in ("=", "+", "-", "@") and hidden(cell) == []


@pytest.mark.parametrize("value", [-1, -0.5, "-1", "+3", "-inf", "1e-3", "text", None, 0])
def test_numbers_and_words_stay_as_they_are(value: object) -> None:
    assert safe_text.csv(value) == value


@pytest.mark.parametrize("terminal", [False, True])
def test_a_console_prints_words_and_no_commands(terminal: bool) -> None:
    def printed(console: Console, text: str) -> str:
        table = Table(text, title=text, caption=text, box=None)
        table.add_row(text)
        table.add_row(Text(text, style="bold"))
        with console.capture() as capture:
            console.print(text, table, Text.assemble(("mark", "red"), text), soft_wrap=True)
            console.document(text)
        return capture.get()

    for text in NASTY:
        shown = printed(SafeConsole(width=10_000, force_terminal=terminal), text)
        plain = Text.from_ansi(shown).plain if terminal else shown
        assert hidden(plain) == []
        assert plain.count("\n") <= 10 + text.count("\n")
    assert "[bold red]loud[/]" in printed(SafeConsole(width=200), NASTY[9])


def test_a_document_keeps_its_lines() -> None:
    console = SafeConsole(width=20)
    with console.capture() as capture:
        console.document("one " * 20 + "\n\ttwo\x1b\n")
    assert capture.get() == "one " * 20 + "\n    two\\x1b\n"
