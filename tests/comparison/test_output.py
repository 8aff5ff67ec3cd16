import json
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from certbench import ABSTAIN, Outcome
from certbench.comparison.classes import Kind
from certbench.comparison.compare import compare
from certbench.comparison.output import SHAPES
from certbench.comparison.side import Side
from tests.support.comparing import called, row, side


def test_text_names_every_row_that_matters(sides: Mapping[str, Side]) -> None:
    code, text = called("old", "new")
    assert code == 3
    for line in (
        "net, crown, L2, input 2   0.5 -> 0.4 (-20.00 %)", "fail: 2 rows are looser; the policy allows 0",
        "warn: 1 rows are tighter; the policy allows 0", "fail: 1 rows are non-finite", "the radius is nan",
        "x[1]|<b>_*",
        "note: 1 rows moved by noise, by +0.002 % on average", "A radius is unsound, or not a number: do not use that",
    ):  # fmt: skip
        assert " ".join(line.split()) in " ".join(text.split())
    assert called("fine", "fine")[0] == 0


def test_markdown_is_escaped(sides: Mapping[str, Side]) -> None:
    code, text = called("old", "new", shape="markdown")
    assert code == 3 and "| net, x\\[1]\\|\\<b>\\_\\*, L2, input 0 |" in text
    tables = [block for block in text.split("\n\n") if block.startswith("| ")]
    assert all(
        len({line.replace("\\|", "").count("|") for line in block.strip().splitlines()}) == 1 for block in tables
    )


def test_json_and_junit_have_every_row(sides: Mapping[str, Side]) -> None:
    code, text = called("old", "new", shape="json")
    values = json.loads(text)
    assert code == values["exit_code"] == 3
    assert values["counts"] == {kind.value: 0 for kind in Kind} | {
        "same": 1, "noise": 1, "looser": 2, "lost": 1, "gained": 1, "tighter": 1, "non-finite": 1,
    }  # fmt: skip
    assert [change["new"] for change in values["changes"] if change["class"] == "non-finite"] == ["nan"]
    suite = ElementTree.fromstring(called("old", "new", shape="junit")[1].encode())
    assert suite.attrib == {"name": "certbench compare", "tests": "3", "failures": "2", "errors": "0"}
    messages = {case.get("name"): case.find("failure") for case in suite}
    failure = messages["crown L2"]
    assert (failure is not None and failure.get("message") == "1 non-finite, 1 looser, 1 lost") or failure is not None
    assert failure.text is not None and "input 3: 0.5 -> 0" in failure.text
    assert messages["both sides"] is None


def test_known_issues_do_not_fail(sides: Mapping[str, Side], tmp_path: Path) -> None:
    (tmp_path / "known.yaml").write_text(
        '- {certifier: crown, input: [2], kind: looser, reason: "slower search"}\n'
        '- {certifier: crown, input: 4, kind: lost, reason: "none any more"}\n'
    )
    code, text = called("old", "new", known=tmp_path / "known.yaml", shape="text")
    assert "fail: 1 rows are looser" in text and "slower search" in text and code == 3
    assert "known issue that is none any more: lost: certifier crown, input (4,)" in text


def test_what_is_said_of_known_issues_is_part_of_the_document(sides: Mapping[str, Side], tmp_path: Path) -> None:
    (tmp_path / "known.yaml").write_text(
        "- {certifier: crown, input: 4, kind: lost, reason: none any more}\n"
        "- {certifier: crwn, kind: lost, reason: typo}\n"
    )
    for shape in SHAPES:
        _, text = called("old", "new", known=tmp_path / "known.yaml", shape=shape)
        assert "known issue that is none any more: lost" in text.replace("\\_", "_")
        assert "known issue that matches no row: lost: certifier crwn" in text
        if shape == "json":
            json.loads(text)
        if shape == "junit":
            ElementTree.fromstring(text.encode())


def test_junit_is_xml_whatever_a_reason_holds() -> None:
    reason = "a\0\x1b[31mred\x0b<&>\ufffe"
    new = side(row(0.0, outcome=Outcome.FAILED, reason=reason, prediction=ABSTAIN))
    suite = ElementTree.fromstring(SHAPES["junit"](compare(side(row(0.5)), new)).encode())
    (failure,) = suite.iter("failure")
    assert failure.text is not None and r"failed: a\x00\x1b[31mred\x0b<&>\ufffe" in failure.text
