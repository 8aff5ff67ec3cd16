"""Margins and outputs over a given ball, and the largest ball for given outputs, against sampling and closed forms."""

import math

import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import L1, L2, Classifier, ConfigError, Linf, Regressor, ThreatModel, UnsupportedError
from certbench.testing import inputs, network, sample_ball

OURS = ["alpha-crown", "crown", "lipschitz", "jacobian-zonotope"]
THREATS = [L1, L2, Linf, L2.within(0, 1), Linf.within(0, 1)]


def regressor() -> Regressor:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1))
    return Regressor(module.eval(), (1, 4, 4), 1)


def affine() -> tuple[Regressor, Tensor, Tensor]:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    double = module.double()[1]
    return Regressor(module.eval(), (1, 4, 4), 2), double.weight.detach(), double.bias.detach()  # type: ignore[return-value]


@pytest.fixture(params=[*OURS, "crown-lirpa", "forward"])
def certifier(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name not in OURS:
        request.getfixturevalue("lirpa")
    return name


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_output_bounds_hold_at_sampled_points(certifier: str, threat: ThreatModel) -> None:
    net, x, eps = regressor(), inputs(4), torch.tensor([0.01, 0.1, 0.3, 1.0], dtype=torch.float64)
    low, high = certbench.output_bounds(certifier, net, x, threat, eps)
    outputs = net.double()(sample_ball(x, eps, threat, 300).flatten(0, 1)).view(4, -1)
    assert (low <= outputs).all() and (outputs <= high).all()
    assert (high - low < (500 if certifier == "lipschitz" else 50)).all()


def test_a_global_constant_answers_both_questions_by_a_division() -> None:
    net, x = regressor(), inputs(3)
    state = certbench.build("lipschitz").prepare(net, L2)
    constant, centre = float(state.constants[0, 1]), net.double()(x)
    low, high = certbench.output_bounds("lipschitz", net, x, L2, 0.1)
    torch.testing.assert_close(
        torch.cat([low, high], dim=1), torch.cat([centre - 0.1 * constant, centre + 0.1 * constant], dim=1)
    )
    radius = certbench.output_radius("lipschitz", net, x, L2, centre - 1.0, centre + 2.0)
    torch.testing.assert_close(radius, torch.full((3,), 1 / constant, dtype=torch.float64), rtol=1e-6, atol=0)


def test_rows_that_are_no_difference_of_outputs_are_bounded_by_the_outputs_own_constants() -> None:
    classifier, x = network("mlp"), inputs(3)
    built = certbench.build("lipschitz")
    state = built.prepare(classifier, L2)
    rows = torch.tensor([[0.5, -2.0, 0.0, 0.0], [1.0, -1.0, 0.0, 0.0], [1.0, -1.0, 0.5, 0.0], [0.0, 0.0, -1.0, 0.0]])
    bounds = built.lower(state, x, rows.double().expand(3, -1, -1), torch.full((3,), 0.1).double())
    alone, pair = state.constants[:-1, -1], state.constants[0, 1]
    expected = torch.stack([0.5 * alone[0] + 2 * alone[1], pair, alone[0] + alone[1] + 0.5 * alone[2], alone[2]])
    assert bounds.slope is not None
    torch.testing.assert_close(bounds.slope, expected.expand(3, -1))


@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_outputs_of_an_affine_map_are_bounded_exactly(certifier: str, threat: ThreatModel) -> None:
    net, weight, bias = affine()
    x = inputs(3)
    low, high = certbench.output_bounds(certifier, net, x, threat, 0.2)
    centre = x.flatten(1) @ weight.T + bias
    reach = 0.2 * torch.linalg.vector_norm(weight, ord=threat.q, dim=1)
    torch.testing.assert_close(low, centre - reach, rtol=0, atol=1e-6)
    torch.testing.assert_close(high, centre + reach, rtol=0, atol=1e-6)
    radius = certbench.output_radius(certifier, net, x, threat, centre - 1, torch.full_like(centre, math.inf))
    expected = 1 / torch.linalg.vector_norm(weight, ord=threat.q, dim=1).max()
    torch.testing.assert_close(radius, expected.expand(3), rtol=2e-3, atol=0)
    assert (radius <= expected).all()


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_outputs_stay_inside_within_the_radius(certifier: str, threat: ThreatModel) -> None:
    net, x = regressor(), inputs(4)
    centre = net.double()(x)
    radius = certbench.output_radius(certifier, net, x, threat, centre - 0.1, centre + 0.2)
    assert (radius > 0).all()
    outputs = net.double()(sample_ball(x, radius, threat, 300).flatten(0, 1)).view(4, -1)
    assert (outputs >= centre - 0.1).all() and (outputs <= centre + 0.2).all()
    assert (certbench.output_radius(certifier, net, x, threat, centre + 0.1, centre + 0.2) == 0).all()


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_margins_by_class_hold_at_sampled_points_and_agree_with_the_radius(certifier: str, threat: ThreatModel) -> None:
    net, x = network("mlp"), inputs(5)
    bounds = certbench.margins(certifier, net, x, threat, 0.05)
    label = net(x).argmax(dim=1)
    logits = net.double()(sample_ball(x, torch.full((5,), 0.05), threat, 200).flatten(0, 1)).view(5, -1, 4)
    margins = logits.gather(2, label.view(-1, 1, 1).expand(-1, logits.shape[1], 1)) - logits
    own = torch.nn.functional.one_hot(label, 4).bool()
    assert (bounds[:, None] <= margins)[~own[:, None].expand_as(margins)].all()
    assert bounds[own].isinf().all() and (bounds[own] > 0).all(), "the class itself hinders no `(margins > 0).all()`"
    ladder = {"name": certifier, "search": {"name": "ladder", "eps": [0.05]}}
    certified = certbench.certify(ladder, net, x, threat).radius > 0
    assert torch.equal((bounds > 0).all(dim=1), certified)


def test_what_cannot_be_asked_is_refused_with_the_reason() -> None:
    net, x = regressor(), inputs(2)
    with pytest.raises(ConfigError, match="no classes"):
        certbench.certify("alpha-crown", net, x, L2)
    with pytest.raises(ConfigError, match="does not bound margins"):
        certbench.output_bounds("best-of", net, x, L2, 0.1)
    for eps in (0.0, -1.0, math.nan, math.inf, torch.ones(3)):
        with pytest.raises(ConfigError, match="eps must be"):
            certbench.output_bounds("alpha-crown", net, x, L2, eps)
    with pytest.raises(ConfigError, match="shape"):
        certbench.output_radius("alpha-crown", net, x, L2, torch.zeros(2), torch.zeros(2))
    with pytest.raises(ConfigError, match="outside the domain"):
        certbench.margins("alpha-crown", network("mlp"), x + 5, L2.within(0, 1), 0.1)
    with pytest.raises(UnsupportedError):
        tanh = Regressor(nn.Sequential(nn.Flatten(), nn.Linear(16, 2), nn.Tanh()).eval(), (1, 4, 4), 2)
        certbench.output_bounds("deepz", tanh, x, L2, 0.1)


def test_bounds_of_outputs_are_behind_a_last_softmax_and_margins_before_it() -> None:
    """The same module as a classifier and as a regressor, in either order: the two share no graph."""
    torch.manual_seed(0)
    x = torch.rand(2, 4, dtype=torch.float64)
    points = x[:, None] + 0.05 * (2 * torch.rand(2, 500, 4, dtype=torch.float64) - 1)
    for first in (Classifier, Regressor):
        module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(1)).eval().requires_grad_(False)
        nets = {kind: kind(module, (4,), 3) for kind in (Classifier, Regressor)}
        for net in (nets.pop(first), *nets.values()):
            certbench.margins("crown", Classifier(module, (4,), 3), x, Linf, 0.05)  # reads the graph without its end
            for name in ("crown", "ibp", "lipschitz"):
                low, high = certbench.output_bounds(name, net, x, Linf, 0.05)
                outputs = net.double()(points.view(-1, 4)).view(2, 500, 3)
                assert (outputs >= low[:, None]).all() and (outputs <= high[:, None]).all()
        state = certbench.build("crown").prepare(Classifier(module, (4,), 3), Linf)
        with pytest.raises(ConfigError, match="leave state out"):
            certbench.output_bounds("crown", Classifier(module, (4,), 3), x, Linf, 0.05, state=state)
