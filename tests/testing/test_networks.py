import math

import pytest
import torch

import certbench
from certbench import L1, L2, Linf, ThreatModel
from certbench.testing import closed_form, inputs, nearest, network, sample_ball

NORMS = [L1, L2, Linf]
BORDER = ((inputs(8) - 0.5) * 2 + 0.5).clamp(0, 1)
"""Inputs of which half the coordinates lie at the border of the unit box."""


@pytest.mark.parametrize("kind", ["linear", "mlp", "cnn", "residual", "unknown"])
def test_networks_are_the_same_each_time_and_leave_the_generator_alone(kind: str) -> None:
    before = torch.get_rng_state()
    one, two, other = network(kind), network(kind), network(kind, seed=2, name="other")
    assert torch.equal(torch.get_rng_state(), before)
    x = inputs(3)
    assert torch.equal(one(x), two(x))
    assert not torch.equal(one(x), other(x))
    assert (one.name, other.name) == (kind, "other")


@pytest.mark.parametrize("threat", NORMS, ids=str)
def test_in_a_box_that_is_far_away_the_closest_counterexample_is_the_closed_form(threat: ThreatModel) -> None:
    classifier, x = network("linear"), inputs(8)
    far = nearest(classifier, x, threat.within(-100, 100))
    torch.testing.assert_close(far, closed_form(classifier, x, threat), rtol=1e-9, atol=0)


@pytest.mark.parametrize("box", [(0, 1), (-0.25, 1.25)])
@pytest.mark.parametrize("threat", NORMS, ids=str)
def test_the_closest_counterexample_in_a_box_is_what_a_complete_certifier_finds(
    threat: ThreatModel, box: tuple[float, float]
) -> None:
    classifier = network("linear")
    exact = nearest(classifier, BORDER, threat.within(*box))
    found = certbench.certify("branch-and-bound", classifier, BORDER[:3], threat.within(*box))
    torch.testing.assert_close(found.radius, exact[:3], rtol=1e-5, atol=0)
    everywhere = closed_form(classifier, BORDER, threat)
    assert (exact >= everywhere * (1 - 1e-9)).all()
    assert box != (0, 1) or (exact > 1.1 * everywhere).any()


def test_where_the_box_holds_no_counterexample_none_is_near() -> None:
    classifier = network("linear")
    with torch.no_grad():
        classifier.module[1].bias[0] = 1e3  # type: ignore[index, union-attr, operator]
    assert nearest(classifier, inputs(2), L2.within(0, 1)).tolist() == [math.inf] * 2


@pytest.mark.parametrize("threat", [*NORMS, L2.within(0, 1)], ids=str)
def test_points_lie_inside_the_ball_and_fill_it(threat: ThreatModel) -> None:
    x, radius = inputs(3), torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    points = sample_ball(x, radius, threat, 200)
    distance = torch.linalg.vector_norm((points - x[:, None]).flatten(2), ord=threat.p, dim=-1)
    assert (distance < radius[:, None]).all()
    if threat.domain is None:
        assert (distance.amax(dim=1) > 0.999 * radius).all()
    else:
        assert points.min() >= 0
        assert points.max() <= 1
