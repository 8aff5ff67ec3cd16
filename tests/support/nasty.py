"""Names and reasons by somebody who wants to print lines of their own."""

FORGED = "0 unsound, all is well"
"""A line that no command may print for a name."""

NASTY = [
    f"a\n{FORGED}",
    f"a\r{FORGED}",
    f"\x1b[2K\x1b[1A{FORGED}",
    f"\x9b2K{FORGED}",
    "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",
    "abc\u202edesrever",
    "\u2066isolated\u2069\u200b\u200f",
    f"a\u2028{FORGED}\u2029\x85\x0b\x0c{FORGED}",
    "\x07\x08\x08\x7f",
    "[bold red]loud[/] [link=http://evil]x[/link] [/]",
    "[x](javascript:alert(1)) ![x](http://evil) <b>b</b> `c` *d* _e_ ~~f~~ | g &lt; www.evil.com http://evil a@b.c",
    '=HYPERLINK("http://evil","x")',
    "@SUM(1)",
    "# head",
    "--- rule",
    "<script>alert(1)</script>",
    "lone \ud800 surrogate",
    ":smile: {{ 7 * 7 }} {% x %}",
]

ALL = "|".join(NASTY)
"""All of them in one name."""


def hidden(text: str) -> list[str]:
    """The characters of an output that a terminal would act upon; line breaks are ours."""
    return [letter for letter in text if not letter.isprintable() and letter != "\n"]


def forged(text: str) -> list[str]:
    """The lines of an output that begin with the forged words."""
    return [line for line in text.splitlines() if line.strip().startswith(FORGED)]
