"""JSON of others is bounded in depth, so that no reader of it ends for want of a stack."""

import json
from typing import Any

import pytest

from certbench.files.json_text import DEEPEST, parse


@pytest.mark.parametrize("one", ["[{}]", '{{"a": {}}}'])
def test_nesting_is_bounded(one: str) -> None:
    text = "0"
    for depth in range(1, DEEPEST + 2):
        text = one.replace("{}", text) if one[0] == "[" else one.format(text)
        if depth <= DEEPEST:
            assert parse(text) == json.loads(text)
    with pytest.raises(ValueError, match="nested deeper"):
        parse(text)
    with pytest.raises(ValueError, match="nested deeper"):
        parse("[" * 100_000 + "]" * 100_000)


def test_wide_values_are_read() -> None:
    value: Any = [[i, {}] for i in range(1000)]
    assert parse(json.dumps(value)) == value
