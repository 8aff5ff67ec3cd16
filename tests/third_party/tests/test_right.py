"""What a package has to write to hold its certifier to the contract."""

from certbench.testing import Case, contract_suite

PERCEPTRONS = frozenset({"linear", "mlp"})
FINE = {"search": {"name": "secant", "relative": 1e-8}}

TestIntervals = contract_suite(Case({"name": "intervals"}, FINE, layers=PERCEPTRONS, attacked=PERCEPTRONS, batch=1e-3))
