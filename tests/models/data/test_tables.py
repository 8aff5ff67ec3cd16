"""Tables of text: names of columns, labels as numbers or words, and what is refused with its line."""

from pathlib import Path
from typing import Any

import pytest
import torch

from certbench.errors import ConfigError
from certbench.models import data


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "mine.csv"


def load(path: Path, text: str, **said: Any) -> data.Dataset:
    path.write_text(text, encoding="utf-8")
    return data.load(data.source(path=str(path), **said))


def test_the_same_table_in_many_forms(table: Path) -> None:
    plain = load(table, "1.5,2,0\n-3,4e1,2\n")
    assert torch.equal(plain.inputs, torch.tensor([[1.5, 2.0], [-3.0, 40.0]])) and plain.labels.tolist() == [0, 2]
    assert plain.features == () and plain.num_classes == 3
    for text, said in (
        ("\ufeffage,sex,class\r\n1.5,2,0\r\n\r\n-3,40,2\r\n", {}),
        ("class;age;sex\n0;1.5;2\n2;-3;40\n", {"labels": "class"}),
        ("id\tage\tclass\tsex\n7\t1.5\t0\t2\n8\t-3\t2\t40\n", {"labels": "class", "features": ["age", "sex"]}),
        ("0,1.5,2\n2.0,-3,40\n", {"labels": 0}),
    ):
        found = load(table, text, **said)
        assert found.fingerprint() == plain.fingerprint()
        assert found.features == (("age", "sex") if "age" in text else ())


def test_words_are_classes_in_their_order(table: Path) -> None:
    found = load(table, "x,kind\n1,wolf\n2,ape\n3,wolf\n")
    assert found.labels.tolist() == [1, 0, 1] and found.classes == ("ape", "wolf") and found.num_classes == 2
    assert "classes ape, wolf" in found.done
    assert load(table, "1,wolf\n2,ape\n").labels.tolist() == [1, 0], "without names of columns"


@pytest.mark.parametrize(
    ("text", "said", "message"),
    [
        ("", {}, "is empty"),
        ("1\n2\n", {}, "line 1: one column"),
        ("a,b\n", {}, "names of columns alone"),
        ("a,a,b\n1,2,0\n", {}, "two columns are called 'a'"),
        ("a,b\n1,0\n1,2,0\n", {}, "line 3: 3 cells, but 2 in the first row"),
        ("a,b\n1,0\n,1\n", {}, "line 3, column a: '' is no finite number"),
        ("1,0\nnan,1\n", {}, "line 2, column 1: 'nan' is no finite number"),
        ("1,0\n1e999,1\n", {}, "'1e999' is no finite number"),
        ("?,2,0\n1,2,0\n", {}, "line 1: '\\?' is no number, but other cells are"),
        ("a,b\n1,0.5\n", {}, "label of row 1 is '0.5'"),
        ("a,b\n1,0\n2,x\n", {}, "label of row 2 is 'x'"),
        ("a,b\n1,0\n", {"labels": "c"}, "no column 'c'; it has a, b"),
        ("1,0\n", {"labels": "c"}, "give a place"),
        ("1,0\n", {"labels": 2}, "no column in place 2"),
        ("a,b\n1,0\n", {"features": ["b"]}, "column 'b' has the labels"),
        ('a,b\n"1,0\n', {}, "cannot be read as a table"),
        ("a,b\n1,0\0\n", {}, "line 2 has a zero byte"),
        ("0,1,2\n5,6,0\n", {}, r"pandas writes .*header=False"),
        (",a,b\n0,5,0\n", {}, r"in place 0 has no name.*index=False"),
        ("a,b\n1_000,0\n", {}, "'1_000' is no finite number"),
    ],
)
def test_a_table_with_something_else_is_refused(table: Path, text: str, said: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(table, text, **said)


def test_other_bytes_are_refused(table: Path) -> None:
    table.write_bytes(b"a,b\n\xff\xfe,0\n")
    with pytest.raises(ConfigError, match="in UTF-8"):
        data.load(str(table))
