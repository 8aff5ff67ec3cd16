"""Files of torch.save: tuples, dicts and single tensors; nothing else is opened."""

from pathlib import Path
from typing import Any

import pytest
import torch

from certbench.errors import ConfigError
from certbench.models import data

X, Y = torch.arange(12.0).view(4, 3), torch.tensor([0, 1, 1, 2])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.pt"


def load(file: Path, content: Any, **said: Any) -> data.Dataset:
    torch.save(content, file)
    return data.load(data.source(path=str(file), **said))


def test_a_tuple_a_dict_and_single_tensors_are_the_same(file: Path) -> None:
    first = load(file, (X, Y))
    assert torch.equal(first.inputs, X) and torch.equal(first.labels, Y)
    torch.save(Y, file.with_name("y.pt"))
    for content, said in (
        ({"x": X, "labels": Y, "epoch": 3}, {}),
        ({"x": X + 1, "a": X, "b": Y}, {"features": "a", "labels": "b"}),
        ([X.bfloat16(), Y], {}),
        ([X.to(torch.float8_e4m3fn), Y], {}),
        ([torch._neg_view(-X), Y], {}),
        (X, {"labels": str(file.with_name("y.pt"))}),
    ):
        assert load(file, content, **said).fingerprint() == first.fingerprint()


class Bomb:
    """Sets off when unpickled."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (X, r"inputs alone; write labels: FILE\.pt"),
        ((X, Y, Y), r"has 3 things; write torch\.save\(\(x, y\), path\)"),
        ((X, 3), "labels are no dense tensor"),
        ({"x": X}, "one array called labels or y; it has x"),
        ((X, torch.eye(4)), "one-hot"),
        ((X, Y[:, None]), "these are a column"),
        ((X, Y[:3]), "4 inputs, but 3 labels"),
        ((torch.zeros(1).expand(10**13, 3), Y), "fewer numbers are stored"),
        ((X.to_sparse(), Y), "inputs are no dense tensor"),
        ((X.to("meta"), Y), "inputs are no dense tensor"),
        ((X * float("nan"), Y), "NaN"),
        (Bomb(), r"more than tensors.*write torch\.save"),
    ],
)
def test_a_file_with_something_else_is_refused(file: Path, content: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(file, content)


def test_a_damaged_file_is_refused(file: Path) -> None:
    torch.save((X, Y), file)
    whole = file.read_bytes()
    for content in (b"", b"no file", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"mine\.pt"):
            data.load(str(file))
