"""The contract suite as a library: the laws that every certifier must keep, ours and those of other packages.

A package that registers its own certifiers writes one row for each, and gets one test per law and question:

    # test_mine.py
    from certbench.testing import Case, contract_suite

    TestMine = contract_suite(Case({"name": "mine"}, norms=frozenset({2.0})))

`pytest test_mine.py` then runs `TestMine::test_closed_form[mine-L2]`, `TestMine::test_attack[mine-L2-mlp]`, and so on.
The name has to begin with `Test`, so that pytest finds it. A law that does not concern a certifier is skipped, with the
reason. A broken law names law, certifier, network and input. `Case` lists the demands that a row can relax; by default
all are made.

Without pytest: `LAWS["attack"].check(case, question)`, for each of the law's `questions`, raises `LawBroken`, or
`NotConcerned` where the law does not apply.

Doors: `Case`, `contract_suite`, `LAWS`, `Law`, `LawBroken`, `NotConcerned`; and for your own tests, the networks of the
laws with their answers: `network`, `inputs`, `closed_form`, `nearest`, `closest`, `sample_ball`.

`contract_suite` needs pytest: `pip install "certbench[testing]"`.
"""

from certbench.testing.case import KINDS, Case
from certbench.testing.law import Law, LawBroken, NotConcerned
from certbench.testing.laws import LAWS
from certbench.testing.networks import closed_form, closest, inputs, nearest, network, sample_ball
from certbench.testing.suite import contract_suite

__all__ = [
    "KINDS",
    "LAWS",
    "Case",
    "Law",
    "LawBroken",
    "NotConcerned",
    "closed_form",
    "closest",
    "contract_suite",
    "inputs",
    "nearest",
    "network",
    "sample_ball",
]
