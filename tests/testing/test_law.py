import pytest
import torch

from certbench import MissingBackendError, UnsupportedError
from certbench.testing import Case, Law, LawBroken, NotConcerned
from certbench.testing.law import demand

CASE = Case({"name": "crown", "search": {"name": "ladder", "eps": [0.1]}})


def raising(error: Exception) -> Law:
    def body(case: Case, threat: str) -> None:
        raise error

    return Law("mine", "Nothing is ever raised.", (("L2",),), body)


@pytest.mark.parametrize("error", [LawBroken("radius 3"), UnsupportedError("radius 3")], ids=str)
def test_a_broken_law_and_an_error_of_the_certifier_name_law_certifier_and_question(error: Exception) -> None:
    with pytest.raises(LawBroken) as caught:
        raising(error).check(CASE, ("L2",))
    said = str(caught.value)
    assert said.startswith("law mine, certifier crown(search={'name': 'ladder', 'eps': [0.1]}), L2: ")
    assert "radius 3\nThe law: Nothing is ever raised." in said


@pytest.mark.parametrize("error", [NotConcerned("takes too long"), MissingBackendError("install it")], ids=str)
def test_what_is_no_fault_of_the_certifier_passes_through(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        raising(error).check(CASE, ("L2",))
    assert caught.value is error


def test_a_crash_keeps_its_class_and_gets_a_note() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        raising(ZeroDivisionError()).check(CASE, ("L2",))
    assert caught.value.__notes__[0].startswith("law mine, certifier crown")


def test_a_demand_names_the_first_input_that_is_wrong() -> None:
    demand(torch.tensor([True, True]), "mlp", "never said")
    with pytest.raises(LawBroken, match=r"network mlp, input 1: radius 1 \(2 of 3 inputs\)"):
        demand(torch.tensor([True, False, False]), "mlp", lambda i: f"radius {i}")
    with pytest.raises(LawBroken, match="network mlp: no rows"):
        demand(False, "mlp", "no rows")
