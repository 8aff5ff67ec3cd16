"""The Jacobian zonotope contains what it says, its norms are what they say, and its radii beat CROWN's in L2."""

import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import L1, L2, Classifier, Linf, ThreatModel
from certbench.core.margins import margin_rows
from certbench.models import data, zoo
from certbench.networks.layers import Network
from certbench.testing import inputs, network, sample_ball
from certbench.verifiers.bounds.backward import layer_bounds
from certbench.verifiers.bounds.region import LayerBounds, Region
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.lipschitz.jacobian_zonotope import JacobianZonotope, zonotope
from certbench.verifiers.lipschitz.local import Slopes

NORMS = [L1, L2, Linf]
KINDS = ["linear", "mlp", "cnn", "residual"]
EPS = torch.tensor([1e-3, 0.05, 0.2, 0.6], dtype=torch.float64)


def setting(kind: str, threat: ThreatModel) -> tuple[NetworkState, Region, Tensor, LayerBounds]:
    """Four balls of a network of the contract, its margins there and its layers' bounds."""
    classifier, x = network(kind), inputs(4)
    state = NetworkState.of(classifier, threat)
    region = Region(threat, x.flatten(1), EPS)
    rows = margin_rows(classifier(x).argmax(dim=1), 4)
    return state, region, rows, layer_bounds(state.network, region)


def jacobians(net: Network, rows: Tensor, slopes: list[Tensor]) -> Tensor:
    """Rows times the product of all weights, with the given slopes in between."""
    moved: dict[int, Tensor] = {len(net.layers): rows}
    while (at := max(moved) - 1) >= 0:
        a = moved.pop(at + 1)
        a = a * slopes[at][:, None] if at < len(net.hidden) else a
        for source, part in net.layers[at].maps.items():
            pulled = part.transpose(a.flatten(0, 1)).view(*a.shape[:2], part.inputs)
            moved[source] = moved.get(source, torch.zeros_like(pulled)) + pulled
    return moved[0]


@pytest.mark.parametrize("threat", NORMS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_no_matrix_with_slopes_in_the_intervals_is_steeper(kind: str, threat: ThreatModel) -> None:
    state, region, rows, bounds = setting(kind, threat)
    slopes = Slopes.tangents(bounds)
    slope = JacobianZonotope(chords=False).steepness(state, region, rows, bounds).slope
    generator, best = torch.Generator().manual_seed(0), torch.zeros_like(slope)
    for step in range(300):
        share = [torch.rand(low.shape, generator=generator, dtype=torch.float64) for low in slopes.low]
        share = share if step % 2 else [part.round() for part in share]
        chosen = [low + t * (high - low) for low, high, t in zip(slopes.low, slopes.high, share, strict=True)]
        best = torch.maximum(best, torch.linalg.vector_norm(jacobians(state.network, rows, chosen), threat.q, dim=-1))
    assert (best <= slope * (1 + 1e-12)).all()
    assert (best[0] >= 0.99 * slope[0]).all()  # next to no choice in the smallest ball


@pytest.mark.parametrize("threat", [*NORMS, *(threat.within(0, 1) for threat in NORMS)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("refine", [False, True])
def test_no_point_of_the_ball_is_further_than_the_chords_allow(kind: str, threat: ThreatModel, refine: bool) -> None:
    state, region, rows, bounds = setting(kind, threat)
    found = JacobianZonotope(refine=refine).steepness(state, region, rows, bounds)
    x = inputs(4)
    points = sample_ball(x, EPS, threat, 2000)
    moved = state.network.preactivations(points.flatten(0, 1).flatten(1))[-1].view(4, 2000, 4)
    change = (moved - state.network.preactivations(region.x)[-1][:, None]) @ rows.transpose(1, 2)
    distance = torch.linalg.vector_norm((points - x[:, None]).flatten(2), threat.p, dim=-1)
    assert (change.abs() <= found.slope[:, None] * distance[..., None] * (1 + 1e-9) + 1e-12).all()
    if found.fall is not None:
        assert (-change.amin(dim=1) <= found.fall * (1 + 1e-9)).all()
        assert kind == "linear" or (found.fall <= found.slope * EPS[:, None] * (1 + 1e-9)).any()


@pytest.mark.parametrize("kind", ["mlp", "cnn", "residual"])
def test_the_gram_norm_is_that_of_all_directions_and_below_the_elementwise_one(kind: str) -> None:
    state, region, rows, bounds = setting(kind, L2)
    found = zonotope(state.network, len(state.network.hidden), rows, Slopes.tangents(bounds))
    assert found.first is not None
    first = state.network.layers[0].maps[0].matrix()
    directions = torch.cat([found.directions, first.expand(4, -1, -1)], dim=1)
    coefficients = torch.cat([found.coefficients, found.first], dim=2)
    mixed = (coefficients * (found.centre @ directions.transpose(1, 2)).abs()).sum(dim=-1)
    gram = (directions @ directions.transpose(1, 2)).abs()
    squared = found.centre.square().sum(-1) + 2 * mixed + ((coefficients @ gram) * coefficients).sum(dim=-1)
    slope = found.steepness(region).slope
    torch.testing.assert_close(slope, squared.sqrt())
    entries = found.centre.abs() + coefficients @ directions.abs()
    assert (slope <= torch.linalg.vector_norm(entries, dim=-1) * (1 + 1e-12)).all()


def test_chunks_of_the_gram_matrix_and_of_the_inputs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    state, region, rows, bounds = setting("cnn", L2)
    whole = JacobianZonotope().steepness(state, region, rows, bounds).slope
    monkeypatch.setattr("certbench.verifiers.lipschitz.jacobian_zonotope.GRAM", 20)
    monkeypatch.setattr("certbench.verifiers.lipschitz.jacobian_zonotope.ENTRIES", 1)
    torch.testing.assert_close(JacobianZonotope().steepness(state, region, rows, bounds).slope, whole)


@pytest.mark.parametrize("threat", NORMS, ids=str)
def test_a_tiny_ball_has_the_gradients_norm(threat: ThreatModel) -> None:
    classifier, x = network("mlp"), inputs(4)
    state = NetworkState.of(classifier, threat)
    region = Region(threat, x.flatten(1), torch.full((4,), 1e-9, dtype=torch.float64))
    rows = margin_rows(classifier(x).argmax(dim=1), 4)
    bounds = layer_bounds(state.network, region)
    points = x.clone().requires_grad_()
    logits = classifier.double().module(points)
    expected = torch.stack(
        [
            torch.autograd.grad((rows[:, k] * logits).sum(), points, retain_graph=True)[0].flatten(1).norm(threat.q, 1)
            for k in range(3)
        ],
        dim=1,
    )
    torch.testing.assert_close(JacobianZonotope().steepness(state, region, rows, bounds).slope, expected)


def test_refined_bounds_hold_and_are_no_looser() -> None:
    state, region, _, bounds = setting("residual", L2)
    refined = JacobianZonotope()._refined(state, region, bounds)
    points = sample_ball(inputs(4), EPS, L2, 2000).flatten(0, 1).flatten(1)
    for i, z in enumerate(state.network.preactivations(points)[:-1]):
        z = z.view(4, 2000, -1)
        assert (z >= refined.lower[i][:, None] - 1e-12).all() and (z <= refined.upper[i][:, None] + 1e-12).all()
        assert (refined.lower[i] >= bounds.lower[i]).all() and (refined.upper[i] <= bounds.upper[i]).all()


@pytest.mark.parametrize("name", ["mlp-plain", "mlp-pgd", "mlp-lipschitz", "cnn-plain"])
def test_radii_in_l2_are_above_those_of_crown(name: str) -> None:
    classifier, x = zoo.load(name), data.load("digits").inputs[:20]
    crown, plain, refined = (
        certbench.certify(spec, classifier, x, L2).radius
        for spec in ("crown", "jacobian-zonotope", {"name": "jacobian-zonotope", "refine": True})
    )
    assert plain.mean() > 1.05 * crown.mean()
    assert refined.mean() >= plain.mean()


def test_shells_gain_with_tangents_and_are_refused_with_chords() -> None:
    classifier, x = network("mlp"), inputs(12)
    one, eight = (
        certbench.certify({"name": "jacobian-zonotope", "chords": False, "shells": shells}, classifier, x, L2).radius
        for shells in (1, 8)
    )
    assert (eight >= one * (1 - 2e-3)).all() and eight.mean() > 1.02 * one.mean()
    with pytest.raises(certbench.ConfigError, match="chords: false"):
        certbench.build({"name": "jacobian-zonotope", "shells": 2})


@pytest.mark.parametrize("threat", NORMS, ids=str)
def test_squares_that_underflow_prove_nothing(threat: ThreatModel) -> None:
    """Logits of 1e-170 with a margin of as much: the gradient's square is no float."""
    layers = [*network("mlp").module.double().children()][1:]  # a Flatten would give the input's own size away
    first, *rest = (layer for layer in layers if isinstance(layer, nn.Linear))
    with torch.no_grad():
        for parameter in (first.weight, first.bias, *(layer.bias for layer in rest)):
            parameter.mul_(1e-170)
    classifier = Classifier(nn.Sequential(*layers).eval(), (16,), 4)
    certificate = certbench.certify("jacobian-zonotope", classifier, inputs(6).flatten(1), threat)
    assert (certificate.radius < 100).all()
