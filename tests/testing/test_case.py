from typing import Any

import pytest

from certbench import ConfigError
from certbench.testing import Case


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"spec": {"sigma": 1}}, 'write the name and the options of the certifier: Case({"name": "mine"})'),
        ({"norms": frozenset()}, "write some of the norms 0, 1, 2 and math.inf"),
        ({"norms": frozenset({3.0})}, "write some of the norms"),
        ({"layers": frozenset({"mpl"})}, "unknown kind of network 'mpl'; known: linear, mlp, cnn, residual"),
        ({"attacked": frozenset({"all"})}, "unknown kind of network 'all'"),
        ({"layers": frozenset()}, "at least one kind of network"),
        ({"inputs": 1}, "write 2 inputs or more"),
    ],
)
def test_a_row_that_no_law_could_use_is_refused(columns: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Case(**{"spec": {"name": "crown"}, **columns})
    assert words in str(caught.value)


def test_laws_that_need_one_network_take_one_that_is_certified() -> None:
    assert Case({"name": "crown"}).usual == "mlp"
    assert Case({"name": "crown"}, layers=frozenset({"residual", "linear"})).usual == "linear"
