import io
import math
import os
import random
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from certbench.core.claims import ABSTAIN, Guarantee, Outcome, Subject
from certbench.errors import StoreError
from certbench.report import html, tables
from certbench.report.figures import COLOURS, CURVES, _axis, _path
from certbench.results import metrics
from certbench.results.metrics import summarise, summarise_estimates
from certbench.results.rows import Estimate, Row

RADII = {2.0: [0.25, 0.5], math.inf: [8 / 255]}
BASE = Row(
    model="cnn",
    certifier="crown",
    guarantee=Guarantee.SOUND,
    subject=Subject.BASE,
    norm=2.0,
    input=0,
    label=3,
    prediction=3,
    radius=0.4,
    outcome=Outcome.COMPLETED,
    upper=0.8,
    seconds=0.001,
)
SMOOTHED = replace(
    BASE,
    certifier="smoothing(sigma=0.5)",
    subject=Subject.SMOOTHED,
    guarantee=Guarantee.PROBABILISTIC,
    radius=0.6,
    upper=math.inf,
    evidence={"alpha": 0.125},
)
NEVER = replace(
    BASE, certifier="lp", prediction=ABSTAIN, radius=0.0, outcome=Outcome.UNSUPPORTED, reason="no\nmax pooling"
)
FAILED = replace(
    BASE, certifier="ibp", prediction=ABSTAIN, radius=0.0, outcome=Outcome.FAILED, reason="SolverError: stuck"
)
ROWS = [BASE, replace(BASE, input=1, radius=0.2), SMOOTHED, replace(SMOOTHED, input=1, radius=0.3), NEVER]
ROWS += [replace(FAILED, input=0), replace(FAILED, input=1, reason="another")]
UNSOUND = replace(BASE, model="mlp", input=17, radius=0.9)


def rendered(rows: list[Row], width: int = 200, radii=RADII) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    tables.render(summarise(rows, radii), console)
    return console.file.getvalue().splitlines()


def cells(lines: list[str], certifier: str) -> dict[str, str]:
    """Header to cell of one certifier's line, over every block of the table."""
    found, heads = {}, []
    for line in lines:
        words = line.split()
        if words[:1] == ["certifier"]:
            heads = words[1:]
        if words[:1] == [certifier] and heads and len(words) == len(heads) + 2:
            found |= dict(zip(["guarantee", *heads], words[1:], strict=True))
    return found


def test_cells_stand_under_their_heads():
    found = cells(rendered(ROWS), "crown")
    assert found == {
        "guarantee": "sound",
        "clean": "100.0",
        "@0.25": "50.0",
        "@0.5": "0.0",
        "mean": "0.300",
        "median": "0.300",
        "ACR": "0.300",
        "tight": "0.38",
        "none": "0",
        "wrong": "0",
        "abst.": "0",
        "fail": "0",
        "s/input": "0.001",
        "prep.": "0",
    }
    assert cells(rendered(ROWS), "smoothing(sigma=0.5)")["@0.5"] == "50.0"
    assert cells(rendered(ROWS), "smoothing(sigma=0.5)")["tight"] == "-"
    assert cells(rendered(ROWS), "ibp")["fail"] == "2"


@pytest.mark.parametrize("width", [80, 60])
def test_a_narrow_console_loses_no_figure(width):
    radii = {2.0: [0.1, 0.2, 0.25, 0.3, 0.4, 0.5]}
    wide, narrow = rendered(ROWS, 200, radii), rendered(ROWS, width, radii)
    assert cells(narrow, "crown") == cells(wide, "crown") != {}
    # a line on one pair stays one line; tables and prose keep to the width
    assert all(len(line) <= width for line in narrow if " / " not in line and "unsupported" not in line)


def test_base_and_smoothed_stand_under_headings_of_their_own():
    lines = [line.strip() for line in rendered(ROWS)]
    assert lines.index("cnn") < lines.index("cnn, smoothed")
    assert any(line.startswith("smoothed: these rows certify another function") for line in lines)
    assert not any("smoothed" in line for line in rendered([BASE]))
    twins = [SMOOTHED, replace(BASE, model="cnn, smoothed")]
    assert [line.strip() for line in rendered(twins)].count("cnn, smoothed") == 2


def test_expected_wrong_certificates_are_printed():
    (line,) = [line for line in rendered(ROWS) if line.startswith("probabilistic")]
    assert "alpha = 0.125" in line and "at most 0.25 wrong ones for 2 inputs" in line
    assert not any("probabilistic" in line for line in rendered([BASE]))
    unknown = replace(SMOOTHED, model="mlp", evidence={})
    (line,) = [line for line in rendered([*ROWS, unknown]) if line.startswith("probabilistic")]
    assert "not recorded for mlp / smoothing" in line


def test_failures_and_unsupported_pairs_are_listed_with_their_reasons():
    lines = rendered([*ROWS, replace(NEVER, model="mlp")], width=40)
    assert "cnn / ibp: 2 failed; first: SolverError: stuck" in lines
    assert "lp: unsupported for cnn, mlp: no max pooling" in lines
    assert cells(lines, "lp") == {}


def test_unsound_is_marked_in_the_row_and_said_below():
    lines = rendered([*ROWS, UNSOUND])
    assert sum(line.strip().startswith("!! crown") for line in lines) == 1
    assert "UNSOUND: mlp / crown: 1 of 1 certificates are refuted by a known counterexample" in lines
    assert "UNSOUND" not in "".join(rendered(ROWS))


def test_names_are_text_not_markup():
    assert any("[bold]cnn[/bold]" in line for line in rendered([replace(BASE, model="[bold]cnn[/bold]")]))


def test_the_title_says_how_many_inputs():
    lines = rendered([*ROWS, UNSOUND])
    assert lines[0].split() == ["L2", "1", "to", "2", "inputs"]
    assert cells(lines, "ibp")["n"] == "2"
    assert rendered([BASE])[0].split() == ["L2", "1", "input"]
    assert "n" not in cells(rendered([BASE]), "crown")


@pytest.mark.parametrize("radius, text", [(0.0123, "0.0123"), (0.3, "0.300"), (2.5, "2.500"), (125.0, "125.0")])
def test_radii_are_printed_to_about_three_digits(radius, text):
    assert cells(rendered([replace(BASE, radius=radius, upper=math.inf)]), "crown").get("mean") == text


def test_small_radii_do_not_look_like_zero():
    rows = [BASE, replace(BASE, certifier="tiny", radius=1e-6)]
    assert cells(rendered(rows), "tiny")["mean"] == "1e-06"


@pytest.mark.parametrize("eps, text", [(0.25, "0.25"), (8 / 255, "8/255"), (0.2, "0.2"), (math.pi, "3.14")])
def test_eps_is_written_as_people_write_it(eps, text):
    assert tables.eps_text(eps) == text


def test_markdown_has_the_cells_of_the_terminal():
    text = tables.markdown(summarise([*ROWS, replace(BASE, norm=math.inf)], RADII))
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    heads, rule, crown = lines[:3]
    assert set(rule) == {"---", "---:"} and len(rule) == len(heads)
    found = dict(zip(heads, crown, strict=True))
    assert (found["model"], found["certifies"], found["guarantee"]) == ("cnn", "base", "sound")
    assert (found["clean %"], found["@0.25"], found["@0.5"]) == ("100.0", "50.0", "0.0")
    assert [heads for heads in lines if "@8/255" in heads]
    assert "- lp: unsupported for cnn: no max pooling" in text


def test_markdown_escapes_names():
    text = tables.markdown(summarise([replace(BASE, model="a|b<i>*c*")], RADII))
    assert r"| a\|b\<i>\*c\* |" in text


class Page(HTMLParser):
    """Checks that tags are balanced, collects the tables' rows."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def page(rows: list[Row], title: str = "Title", manifest=None) -> str:
    return html.html(title, manifest or {}, rows, RADII)


def test_the_report_holds_the_cells_of_the_terminal():
    found = Page(page([*ROWS, replace(BASE, norm=math.inf)])).rows
    crown = next(row for row in found if row[0] == "crown")
    assert [*crown[1:3], *crown[3:]] == ["base", *cells(rendered(ROWS), "crown").values()]


def test_the_report_is_one_file_that_loads_nothing():
    text = page([*ROWS, UNSOUND], manifest={"suite": "s", "config": {"a": {"b": 1}}})
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\bsrc=|<script|<link|<iframe|\bon\w+=", text)
    assert set(re.findall(r'href="(.)', text)) == {"#"}
    assert {"svg", "table", "details"} <= Page(text).tags


def test_names_from_users_are_escaped():
    evil = '"><script>alert(1)</script><img x=y>'
    row = replace(BASE, model=evil, certifier=evil, reason=evil)
    rows = [row, replace(row, certifier="b", outcome=Outcome.FAILED), replace(NEVER, model=evil, reason=evil)]
    text = page([*rows, replace(row, radius=0.9)], title=evil, manifest={evil: evil, "deep": {"a": [evil]}})
    parsed = Page(text)
    assert not parsed.tags & {"script", "img"}
    assert "&lt;script&gt;alert(1)" in text
    assert any(evil in row[0] for row in parsed.rows)


def many(certifiers: int = 8) -> list[Row]:
    rng = random.Random(0)
    rows = []
    for norm in (1.0, 2.0, math.inf):
        for model in range(7):
            for certifier in range(certifiers):
                base = SMOOTHED if certifier % 4 == 3 else BASE
                for i in range(100):
                    radius = rng.lognormvariate(0, 1)
                    changes = {"norm": norm, "model": f"model-{model}", "certifier": f"{base.certifier}-{certifier}"}
                    rows.append(replace(base, input=i, radius=radius, upper=radius * 2, **changes))
    return rows


def test_size_of_a_large_report(tmp_path):
    html.write(tmp_path / "r.html", "Large", {}, many(), RADII)
    assert 50_000 < (tmp_path / "r.html").stat().st_size < 400_000


def test_a_certifier_keeps_its_colour_and_dashes_mean_smoothed():
    text = page(many())
    looks: dict[str, set[str]] = {}
    for css, name in re.findall(r'<path class="line ([^"]*)" d="[^"]*"><title>([^<]*)</title>', text):
        looks.setdefault(name, set()).add(css)
    assert len(looks) == 8
    assert all(len(css) == 1 for css in looks.values())
    assert len({css for (css,) in looks.values()}) == 8
    for colour in range(COLOURS):
        assert text.count(f"--c{colour}:") == 2  # light and dark
        assert f".c{colour}{{" in text
    assert all(("smooth" in css) == name.startswith("smoothing") for name, (css,) in looks.items())


def test_a_drawn_curve_is_the_certified_accuracy():
    rng = random.Random(1)
    rows = [replace(BASE, input=i, radius=rng.random(), prediction=rng.choice([3, 3, 4])) for i in range(37)]
    frame = CURVES
    path = _path(metrics.curve(rows), 1.0)
    (x, y), drawn = map(int, re.match(r"M(\d+) (\d+)", path).groups()), []
    for command, amount in re.findall(r"([vhVH])(-?\d+)", path):
        if command in "vV":
            y = int(amount) + (y if command == "v" else 0)
        else:
            drawn.append((x, x := int(amount) + (x if command == "h" else 0), y))
    assert (drawn[0][0], drawn[-1][1]) == (frame.left, frame.right)
    assert len(drawn) > 15
    for left, right, height in drawn:
        eps = ((left + right) / 2 - frame.left) / (frame.right - frame.left)
        accuracy = sum(row.certified(eps) for row in rows) / 37
        assert abs(height - frame.y(accuracy)) <= 1


@pytest.mark.parametrize("top", [1e-4, 0.031, 0.3, 1.0, 1.01, 6.6, 59.9, 250.0])
def test_axes_end_at_a_round_number_close_above(top):
    end, marks = _axis(top)
    assert top <= end * (1 + 1e-9) and end <= 1.5 * top
    assert marks[0] == 0 and marks[-1] == pytest.approx(end) and 3 <= len(marks) <= 7


def test_the_verdict_is_prominent_when_a_certificate_is_refuted():
    text = page([*ROWS, UNSOUND])
    assert "UNSOUND: 1 of 3 attacked certificates is refuted" in text
    assert ["mlp", "crown", "L2", "17", "0.9", "0.8"] in Page(text).rows


def test_the_verdict_otherwise():
    text = page(ROWS)
    assert "UNSOUND" not in text
    text, _, _ = text.partition("</section>")  # the verdict stands on top
    assert "None of the 2 attacked certificates" in text
    assert "failed, timed out or ran out of memory: 2 (listed" in text
    assert "at most 0.25 wrong ones for 2 inputs" in text
    assert "Nothing was checked" in page([SMOOTHED])
    assert "smoothed classifiers" not in page([BASE]).lower()


GUESS = Estimate("cnn", "clever(radius=1)", 2.0, None, 0, value=0.9, cap=1.0, upper=0.8)
GUESSES = [GUESS, replace(GUESS, input=1, value=0.3), replace(GUESS, model="mlp", value=math.nan)]
GUESS_CELLS = ["cnn", "clever(radius=1)", "2", "0.600", "0", "0.75", "1 of 2"]


def test_estimates_stand_in_tables_of_their_own_and_change_nothing_else():
    with_guesses = html.html("Title", {}, ROWS, RADII, GUESSES)
    assert GUESS_CELLS in Page(with_guesses).rows
    assert ["mlp", "clever(radius=1)", "0", "-", "0", "-", "0 of 0"] in Page(with_guesses).rows
    assert "Estimates prove nothing" in with_guesses and "Estimates" not in page(ROWS)
    start, end = with_guesses.index("<h3>Estimates"), with_guesses.index("<h3>Certified accuracy")
    assert with_guesses[:start] + with_guesses[end:] == page(ROWS)  # no verdict, curve or ranking knows of them
    evil = '"><script>alert(1)</script>'
    assert not Page(html.html("", {}, ROWS, RADII, [replace(GUESS, model=evil)])).tags & {"script"}


def test_estimates_stand_in_markdown_and_in_the_terminal():
    summaries, guesses = summarise(ROWS, RADII), summarise_estimates(GUESSES)
    text = tables.markdown(summaries, guesses)
    assert "| " + " | ".join(GUESS_CELLS) + " |" in text
    assert text.startswith(tables.markdown(summaries).rstrip("\n"))
    console = Console(file=io.StringIO(), width=200)
    tables.render(summaries, console, guesses)
    lines = console.file.getvalue().splitlines()
    assert " ".join(GUESS_CELLS) in [" ".join(line.split()) for line in lines]
    assert any(line.startswith("Estimates prove nothing") for line in lines)


def test_only_so_many_refuted_certificates_are_listed():
    text = page([replace(UNSOUND, input=i) for i in range(html.UNSOUND_SHOWN + 3)])
    assert sum(row[:2] == ["mlp", "crown"] for row in Page(text).rows) == html.UNSOUND_SHOWN
    assert "And 3 more." in text


def test_tightness_and_radius_are_never_on_one_axis():
    assert "Tightness against cost" in page([BASE]) and "Mean radius against cost" not in page([BASE])
    unattacked = replace(BASE, certifier="ibp", upper=math.inf)
    text = page([unattacked, SMOOTHED])
    assert "Tightness against cost" not in text
    assert "cost: no counterexample known" in text and "cost: smoothed classifiers" in text


def test_the_manifest_is_shown():
    text = page(ROWS, manifest={"git_commit": "80985f5", "versions": {"torch": "2.13"}, "config": [{"name": "crown"}]})
    assert "<dt>git commit</dt><dd>80985f5</dd>" in text
    assert "torch 2.13" in text
    assert "&#34;name&#34;: &#34;crown&#34;" in text


@pytest.mark.parametrize("rows", [[], [NEVER], [FAILED], [replace(BASE, radius=math.inf, upper=math.inf)]])
def test_reports_of_little(rows):
    Page(page(rows))
    rendered(rows)
    tables.markdown(summarise(rows, RADII))


def test_writing_replaces_whole_files(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(StoreError, match="No space left"):
            html.write(path, "Title", {}, ROWS, RADII)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    html.write(path, "Title", {}, ROWS, RADII)
    assert path.read_text().rstrip().endswith("</html>")
    assert list(tmp_path.iterdir()) == [path]


def test_writing_into_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(StoreError, match=r"nowhere.*report\.html"):
        html.write(tmp_path / "nowhere" / "report.html", "Title", {}, ROWS, RADII)


def test_unbounded_rows_are_counted_beside_the_mean():
    rows = [BASE, replace(BASE, input=1, radius=1e4, outcome=Outcome.LIMITED)]
    text = tables.markdown(summarise(rows, RADII))
    assert "| unb. |" in text and "cnn / crown: 1 unbounded" in text and "| 0.400 | 0.400 | 0.400 |" in text
    assert "unb." not in tables.markdown(summarise([BASE], RADII))
    alone = tables.markdown(summarise(rows[1:], RADII))
    assert "| - | - | - |" in alone
    assert ">unb.</th>" in html.html("title", {}, rows, RADII)
