import pytest
import torch

from certbench import ConfigError
from certbench.formats.vnnlib.version1 import parse

HEAD = "; a comment (\n" + "".join(f"(declare-const {name} Real)\n" for name in ("X_0", "X_1", "Y_0", "Y_1"))
BOX = "(assert (<= X_0 0.5))(assert (>= X_0 -5e-1))\n(assert (and (<= X_1 2) (<= 1 X_1)))\n"


def rows(text: str) -> list[list[list[float]]]:
    """Each disjunct as its conditions: coefficients of the outputs, then the constant."""
    found = parse(HEAD + BOX + text)
    return [torch.cat([one.rows, one.constants[:, None]], dim=1).tolist() for one in found.disjuncts]


def test_boxes_and_conditions() -> None:
    found = parse(HEAD + BOX + "(assert (or (and (>= Y_0 Y_1)) (and (<= Y_0 3.5) (> Y_1 0))))")
    assert (found.inputs, found.outputs) == (2, 2)
    for one in found.disjuncts:
        assert one.lower.tolist() == [-0.5, 1.0] and one.upper.tolist() == [0.5, 2.0]
    assert [one.rows.tolist() for one in found.disjuncts] == [[[1, -1]], [[-1, 0], [0, 1]]]
    assert [one.constants.tolist() for one in found.disjuncts] == [[0], [3.5, 0]]
    assert [one.strict for one in found.disjuncts] == [(False,), (False, True)]
    assert len(found.boxes()) == 1


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("(assert (<= Y_0 Y_1))", [[[-1, 1, 0]]]),
        ("(assert (= Y_0 2))", [[[1, 0, -2], [-1, 0, 2]]]),
        ("(assert (>= (+ Y_0 (* 2 Y_1) 1) (- Y_0 (- Y_1) 3)))", [[[0, 1, 4]]]),
        ("(assert (or (<= Y_0 1) (<= Y_1 1)))(assert (or (>= Y_0 0) (>= Y_1 0)))",
         [[[-1, 0, 1], [1, 0, 0]], [[-1, 0, 1], [0, 1, 0]], [[0, -1, 1], [1, 0, 0]], [[0, -1, 1], [0, 1, 0]]]),
        ("(assert (and (or (<= Y_0 1) (<= Y_1 1)) (>= Y_0 0)))", [[[1, 0, 0], [-1, 0, 1]], [[1, 0, 0], [0, -1, 1]]]),
    ],
)  # fmt: skip
def test_formulas(formula: str, expected: list[list[list[float]]]) -> None:
    assert rows(formula) == expected


def test_sums_and_products_are_not_rounded() -> None:
    """In float64 0.1 + 0.2 is beyond 0.3, 1e20 - 1 - 1e20 is 0, and 1e-200 squared is 0."""
    point = parse(HEAD + "(assert (and (<= X_0 0.3) (>= X_0 (+ 0.1 0.2)) (<= X_1 1) (>= X_1 1) (<= Y_0 0)))").disjuncts[
        0
    ]
    assert point.lower[0] == point.upper[0] == 0.3 and not point.empty
    assert rows("(assert (>= Y_0 (- (+ 1e20 -1) 1e20)))") == [[[1, 0, 1]]]
    assert rows("(assert (>= (* 1e-200 1e-200 1e200 1e200 Y_0) 0.5))") == [[[1, 0, -0.5]]]
    assert rows("(assert (>= (- (+ 0.1 0.2) 0.3) Y_0))") == [[[-1, 0, 0]]]


def test_disjunctions_of_boxes() -> None:
    boxes = "(assert (or (and (<= X_0 0.1) (>= Y_0 1)) (and (>= X_0 0.2) (<= X_0 0.3) (>= Y_0 2)) (<= X_0 -1)))"
    found = parse(HEAD + BOX + boxes)
    assert [(one.lower[0].item(), one.upper[0].item()) for one in found.disjuncts] == [
        (-0.5, 0.1),
        (0.2, 0.3),
        (-0.5, -1),
    ]
    assert [one.empty for one in found.disjuncts] == [False, False, True] and len(found.boxes()) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + BOX + "(assert (<= Y_0 Y_2))", "8: Y_2 is not declared"),
        (HEAD + BOX + "(assert (not (<= Y_0 1)))", "8: 'not' is not read as a formula"),
        (HEAD + BOX + "(assert (<= Y_0 X_0))", "8: inputs and outputs in one comparison"),
        (HEAD + BOX + "(assert (<= X_0 X_1))", "8: an input is compared with one number"),
        (HEAD + BOX + "(assert (<= (* 2 X_0) 1))", "8: an input with a factor"),
        (HEAD + BOX + "(assert (< X_0 1))", "8: strict bounds of inputs"),
        (HEAD + BOX + "(assert (<= (* Y_0 Y_1) 1))", "8: a product of two variables"),
        (HEAD + BOX + "(assert (<= Y_0 1e999))", "8: '1e999' is neither"),
        (HEAD + BOX + "(assert (<= Y_0 nan))", "8: 'nan' is neither"),
        (HEAD + BOX + "(assert (<= Y_0 1_0))", "8: '1_0' is neither"),
        (HEAD + BOX + "(assert (<= Y_0 1e99999999))", "8: '1e99999999' is neither"),
        (HEAD + BOX + "(assert (<= (* 1e200 1e200 Y_0) 1))", "8: a number is beyond float64"),
        (HEAD + BOX + "(assert (<= Y_0 1e-320))", "8: a number is beyond float64"),
        (HEAD + BOX + "(assert (<= (* 1e-200 1e-200 Y_0) 1))", "8: a number rounds to zero"),
        (HEAD + BOX + "(assert (<= Y_0 1 2))", "8: <= compares two"),
        (HEAD + BOX + "(assert (<= Y_0\n 1)", "8: a parenthesis is not closed; the file may be truncated"),
        (HEAD + BOX + "(assert (<= Y_0 1)))", "8: a parenthesis is closed"),
        (HEAD + BOX + "Y_0", "8: 'Y_0' stands outside"),
        (HEAD + BOX + "(check-sat)", "8: check-sat is not read"),
        (HEAD + "(assert (<= X_0 1))(assert (>= Y_0 0))", "the input 0 has no lower bound"),
        (HEAD + "(declare-const X_3 Real)", "6: X_3 is declared where X_2 is next"),
        (HEAD + "(declare-const X_2 Int)", "6: X_2 is Int"),
        (HEAD + "(declare-fun X_2 () Real)", "6: declare-fun is not read"),
        (HEAD, "nothing is asserted"),
        ("(declare-const X_0 Real)(assert (<= X_0 1))", "no outputs"),
        ("", "no inputs"),
        ("(" * 100_000, "more than 60 parentheses"),
        (HEAD + BOX + "(assert (or (<= Y_0 1) (<= Y_1 1)))" * 17, "more than 65536 disjuncts"),
    ],
)
def test_what_is_not_read_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match="^" + message.replace("(", r"\(") if message[0].isdigit() else message):
        parse(text)
