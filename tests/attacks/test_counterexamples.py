import pytest
import torch

from certbench import L2
from certbench.attacks.battery import attack
from certbench.attacks.counterexamples import Counterexamples, replay
from certbench.testing import inputs, network

pytestmark = pytest.mark.machine


def test_known_points_are_replayed_and_what_is_none_is_dropped() -> None:
    classifier, x = network("linear"), inputs(4)
    found = attack(classifier, x, (L2,), (0.0, 1.0), steps=20)[L2]
    points = found.point.clone()
    points[0] = x[0]
    claimed = Counterexamples(torch.zeros(4, dtype=torch.float64), points, found.attack)
    again = replay(classifier, x, L2, claimed)[L2]
    assert again.distance.isinf().tolist() == [True, *found.distance.isinf().tolist()[1:]]
    torch.testing.assert_close(again.distance[1:], found.distance[1:])


def test_points_outside_the_domain_are_no_counterexamples_of_it() -> None:
    classifier, x = network("linear"), inputs(4)
    found = attack(classifier, x, (L2,), (-20.0, 20.0), steps=20)[L2]
    far = Counterexamples(found.distance, x + 50 * (found.point - x), found.attack)
    inside = replay(classifier, x, L2.within(0.0, 1.0), far)[L2.within(0.0, 1.0)]
    assert inside.point.min() >= 0 and inside.point.max() <= 1
