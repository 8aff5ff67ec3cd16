import pytest

from certbench import ConfigError
from certbench.formats.vnnlib.version2 import parse

pytest.importorskip("vnnlib")

HEAD = """(vnnlib-version <2.0>)
(declare-network net (declare-input X float32 [1,2]) (declare-output Y float32 [2]))
(assert (and (<= X[0,0] 0.5) (>= X[0,0] -0.5) (<= 1.0 X[0,1]) (== X[0,1] 1.0)))
"""


def test_boxes_and_conditions() -> None:
    found = parse(HEAD + "(assert (or (> Y[0] Y[1]) (<= (- (* 2.0 Y[0]) (- 1.5)) (+ 0.1 Y[1]))))")
    assert (found.inputs, found.outputs) == (2, 2)
    assert all(one.lower.tolist() == [-0.5, 1] and one.upper.tolist() == [0.5, 1] for one in found.disjuncts)
    assert [one.rows.tolist() for one in found.disjuncts] == [[[1, -1]], [[-2, 1]]]
    assert [one.constants.tolist() for one in found.disjuncts] == [[0], [-1.4]]
    assert [one.strict for one in found.disjuncts] == [(True,), (False,)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "(assert (<= X[0,5] 1.0))", "4: Index out of bounds"),
        (HEAD + "(assert (<= Y[0] 1e-3))", "4: Parse error.* not as 1e-3"),
        (HEAD + "(assert (<= (* Y[0] Y[1]) 1.0))", "4: a product of two variables"),
        (HEAD + "(assert (!= Y[0] 1.0))", "4: NotEqual is not read"),
        (HEAD + "(assert (<= Y[0] 1.0)", "Parse error"),
        (HEAD.replace("[2]))", "[2]) (declare-output Z float32 [2]))"), "one input, one output"),
        (HEAD.replace("float32 [1,2]", "int8 [1,2]").replace(".5", "").replace("1.0", "1"), "1: X is"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(text)
