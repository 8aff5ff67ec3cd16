"""Each way of being wrong is found by the law that names it, and each law finds one."""

from typing import Any

import pytest
from intervals import TABLE

from certbench.testing import KINDS, LAWS, Case, LawBroken, NotConcerned

PERCEPTRONS = frozenset({"linear", "mlp"})

FOUND = [
    ("wrong-sign", "closed_form", "exceeds the distance to the boundary"),
    ("primal", "closed_form", "exceeds the distance to the boundary"),
    ("false-counterexample", "closed_form", "closer than the boundary"),
    ("small-ball", "hidden", "exceeds the distance to the boundary"),
    ("own-domain", "domain", "but a counterexample inside the domain lies at"),
    ("tangent", "attack", "but an attack finds a counterexample at"),
    ("no-confidence", "coverage", "alpha 0.001 allows"),
    ("shared-budget", "batch", "alone"),
    ("mean-of-batch", "margins", "among others"),
    ("stale", "memory", "after another network of the same name"),
    ("in-place", "untouched", "the weights are others than before"),
    ("unseeded", "seed", "with the same seed"),
    ("same-draws", "seed", "another seed gives the same evidence"),
    ("other-class", "ranges", "but the classifier says"),
    ("nan-certifies", "poison", "in the weights"),
    ("ties-certify", "ties", "radius 0.1 at a tie"),
    ("absolute-slack", "scale", "with logits 1024 times as large"),
    ("skips-layers", "unknown_layer", "must be refused"),
    ("any-norm", "norms", "must be refused"),
    ("own-norms", "narrow", "must be refused"),
    ("doubles", "round_trip", "builds"),
    ("refuses", "layers", "is listed, but refused"),
]
"""What is wrong on purpose, the law that finds it, and some of its words."""

L2_ONLY = frozenset({2.0})
SMOOTHED: dict[str, Any] = {"norms": L2_ONLY, "tight": frozenset(), "layers": frozenset(KINDS)}
LOOSE: dict[str, Any] = {"tight": frozenset()}
COLUMNS: dict[str, dict[str, Any]] = {
    "false-counterexample": LOOSE,
    "shared-budget": LOOSE,
    "unseeded": LOOSE,
    "absolute-slack": LOOSE,
    "any-norm": {"norms": L2_ONLY},
    "no-confidence": {**SMOOTHED, "fine": {}},
    "same-draws": {**SMOOTHED, "fine": {}},
}
"""What is true of a certifier beside its fault, so that only the fault is found."""


def row(name: str) -> Case:
    """The row of a certifier."""
    fine = {"search": {"name": "secant", "relative": 1e-8}}
    usual: dict[str, Any] = {"layers": PERCEPTRONS, "attacked": PERCEPTRONS, "batch": 1e-3, "fine": fine}
    return Case({"name": name}, **{**usual, **COLUMNS.get(name, {})})


def broken(case: Case, law: str) -> list[str]:
    """What a law says of a certifier, question by question."""
    said = []
    for question in LAWS[law].questions:
        try:
            LAWS[law].check(case, question)
        except NotConcerned:
            continue
        except LawBroken as error:
            said.append(str(error))
    return said


def test_every_law_finds_something_and_everything_is_found() -> None:
    assert {law for _, law, _ in FOUND} == set(LAWS)
    assert {name for name, _, _ in FOUND} == set(TABLE) - {"intervals"}


@pytest.mark.parametrize(("name", "law", "words"), FOUND)
def test_what_is_wrong_is_found_by_the_law_that_names_it(name: str, law: str, words: str) -> None:
    assert broken(row("intervals"), law) == []
    said = broken(row(name), law)
    assert said
    for message in said:
        assert message.startswith(f"law {law}, certifier {name}")
        assert words in message
        assert f"The law: {LAWS[law].statement}" in message


def test_a_message_names_law_certifier_network_and_input() -> None:
    first = broken(row("tangent"), "attack")[0]
    assert first.startswith("law attack, certifier tangent, L1, mlp: network mlp, input ")
