"""The contract suite as a library: the laws that every certifier is held to, ours and those of other packages.

A package that registers certifiers of its own writes one row for each and gets one test per law and question:

    # test_mine.py
    from certbench.testing import Case, contract_suite

    TestMine = contract_suite(Case({"name": "mine"}, norms=frozenset({2.0})))

`pytest test_mine.py` then runs `TestMine::test_closed_form[mine-L2]`, `TestMine::test_attack[mine-L2-mlp]`, and so on.
The name has to begin with `Test`, so that pytest finds it. A law that does not concern a certifier is skipped and says
why. A law that is broken says which law, which certifier, which network and which input. `Case` says what can be
declared of a certifier; what is not declared is demanded.

Without pytest: `LAWS["attack"].check(case, question)`, for each of the law's `questions`, raises `LawBroken`, or
`NotConcerned` where the law does not apply.

Doors: `Case`, `contract_suite`, `LAWS`, `Law`, `LawBroken`, `NotConcerned`; and for tests of one's own, the networks
of the laws with their answers: `network`, `inputs`, `closed_form`, `nearest`, `closest`, `sample_ball`.

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
