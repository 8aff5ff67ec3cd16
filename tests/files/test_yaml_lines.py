"""YAML of others is read in time that grows with the file, not with what its aliases stand for."""

from pathlib import Path

import pytest

from certbench.errors import ConfigError
from certbench.files.yaml_lines import MOST, read

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 19))
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 8)}]}}\n" for i in range(1, 9))


@pytest.mark.parametrize("text", [LAUGHS, MERGED])
def test_aliases_of_aliases_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"line [0-9]+: more than {MOST} values, those that aliases repeat included"):
        read(text, Path("bad.yaml"))


def test_an_alias_stands_for_its_values() -> None:
    values, lines = read("a: &a [1, 2]\nb: *a\n", Path("good.yaml"))
    assert values == {"a": [1, 2], "b": [1, 2]} and lines["b",] == 2
