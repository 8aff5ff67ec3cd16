"""The contract: laws for every certifier in the table, see `certbench.testing`. A row in cases.py adds one."""

import pytest

import certbench
from certbench import L1, L2, Linf, ThreatModel
from certbench.core import registry
from certbench.testing import contract_suite, inputs, network
from tests.cases import CASES

TestContract = contract_suite(*CASES)


def test_every_certifier_of_the_table_has_a_case() -> None:
    ours = {name for name, target in registry.table().items() if target.startswith("certbench.")}
    assert {case.name for case in CASES} == ours


@pytest.mark.machine
@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_optimised_slopes_are_no_looser_than_crown(threat: ThreatModel) -> None:
    """A law with the same intermediate bounds; IBP <= CROWN and Wong-Kolter <= CROWN are none."""
    classifier, x = network("mlp"), inputs(10)
    crown, alpha = (certbench.certify(name, classifier, x, threat).radius for name in ("crown", "alpha-crown"))
    assert (alpha >= crown * (1 - 2e-3)).all()  # each search stops within 1e-3
