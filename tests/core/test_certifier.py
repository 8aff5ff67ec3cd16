"""What a certifier is taken to be that says nothing of itself, and what ours say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import pytest
import torch
from torch import Tensor, nn

from certbench import L2, Certificate, Certifier, Classifier, Guarantee, SmoothedClassifier, ThreatModel, build
from certbench.core import registry
from certbench.core.options import describe


@dataclass(frozen=True)
class Silent(Certifier[None]):
    guarantee = Guarantee.SOUND
    norms = frozenset({2.0})

    def prepare(self, classifier: Classifier, threat: ThreatModel) -> None:
        return None

    def certify(self, state: None, x: Tensor, seeds: Sequence[int]) -> Certificate:
        return Certificate.of(torch.zeros(len(x), dtype=torch.int64), torch.zeros(len(x)))


def plane() -> Classifier:
    return Classifier(nn.Sequential(nn.Linear(2, 2)).eval().requires_grad_(False), (2,), 2)


def test_a_certifier_that_says_nothing_is_held_to_the_strictest_reading() -> None:
    certifier = Silent()
    assert certifier.repeatable, "a radius that it does not prove again is unsound"
    assert certifier.members == () and not certifier.rounding_safe
    assert certifier.dominates(certifier) is None, "nothing is called a theorem that it does not claim"
    assert certifier.attainable(0.5, {}) == 0.5
    assert certifier.smoothed(plane(), L2) is None
    assert not fields(certifier), "none of it is an option"


@pytest.mark.parametrize("name", sorted(registry.table()))
def test_ours_stay_within_the_interface(name: str) -> None:
    """What the audit asks has an answer, none of it is an option unless it was one, and all of it survives storing."""
    certifier = build(name)
    again = build(describe(certifier))
    assert again == certifier and (again.repeatable, again.members) == (certifier.repeatable, certifier.members)
    assert all(isinstance(member, Certifier) for member in certifier.members)
    assert all(certifier.resources.cpus >= member.resources.cpus > 0 for member in certifier.members)
    assert certifier.repeatable == all(member.repeatable for member in certifier.members or (certifier,))
    assert certifier.attainable(0.5, {}) >= 0.5
    assert not {"repeatable", "members", "resources"} & {field.name for field in fields(certifier)}  # type: ignore[arg-type]
    if certifier.dominates(certifier) is not None:
        assert certifier.repeatable


def test_those_that_hang_on_an_optimiser_a_solver_or_the_time_are_not_repeatable() -> None:
    left = {name for name in registry.table() if not build(name).repeatable}
    assert left == {
        "alpha-crown", "lp", "sdp", "lipsdp", "milp", "branch-and-bound",
    }  # fmt: skip
    assert not build({"name": "best-of", "of": ["lipschitz", "alpha-crown"]}).repeatable
    assert build("best-of").repeatable


def test_the_attack_of_a_smoothed_classifier_follows_its_base_unless_it_knows_better() -> None:
    class Plain(SmoothedClassifier):
        base, alpha, shared = plane(), 0.1, False

        def predict(self, x: Tensor, *, level: float, draws: int, seed: int) -> Tensor:
            return self.base(x).argmax(dim=1)

    smoothed, x = Plain(), torch.randn(5, 2)
    label = smoothed.predict(x, level=0.1, draws=1, seed=0)
    found = smoothed.likelihood(5, draws=3, seed=0)(x, label)
    torch.testing.assert_close(found, smoothed.base(x).log_softmax(dim=1).amax(dim=1))
    assert (found > math.log(0.5)).all()
    assert torch.equal(smoothed.moved(x, x), 2 * x)
