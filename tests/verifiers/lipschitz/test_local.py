"""Local Lipschitz constants against sampled Jacobians, quotients and attacks, and the orders that are theorems."""

import math
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import L1, L2, Classifier, ConfigError, Linf, ThreatModel, UnsupportedError
from certbench.attacks.battery import attack
from certbench.core.margins import margin_rows
from certbench.core.search import Secant
from certbench.testing import closed_form, inputs, network, sample_ball
from certbench.verifiers.bounds.backward import layer_bounds
from certbench.verifiers.bounds.region import Region
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.lipschitz.fast_lip import FastLip, RecurJac
from certbench.verifiers.lipschitz.local import LocalLipschitz
from certbench.verifiers.lipschitz.masked_product import MaskedProduct
from tests.support.slopes import CHORDS, KINDS, NORMS, PLAIN, Question, jacobian, mlp, net, question, short


def refused(certifier: LocalLipschitz, kind: str) -> bool:
    return kind == "skip" and not isinstance(certifier, FastLip)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threat", NORMS, ids=str)
@pytest.mark.parametrize("certifiers", [PLAIN, CHORDS], ids=["tangents", "chords"])
def test_no_matrix_that_the_slopes_allow_is_steeper(
    certifiers: list[LocalLipschitz], threat: ThreatModel, kind: str
) -> None:
    asked = question(kind, threat)
    slopes = asked.slopes(certifiers[0].chords)
    generator = torch.Generator().manual_seed(0)
    steepest = torch.zeros_like(asked.rows[..., 0])
    for i in range(len(asked.x)):
        drawn = []
        for low, high in zip(slopes.low, slopes.high, strict=True):
            at = torch.rand(300, low.shape[1], generator=generator, dtype=torch.float64)
            at[:200] = at[:200].round()  # corners
            drawn.append(low[i] + at * (high[i] - low[i]))
        product = asked.rows[i] @ jacobian(asked.state.network, drawn)
        steepest[i] = torch.linalg.vector_norm(product, ord=threat.q, dim=-1).amax(dim=0)
    for certifier in certifiers:
        if not refused(certifier, kind):
            slope = asked.slope(certifier)
            assert (steepest <= slope * (1 + 1e-9)).all()
            assert (steepest >= slope / 30).all()  # it is about these


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threat", [*NORMS, *(threat.within(0, 1) for threat in NORMS)], ids=str)
def test_margins_fall_no_faster_between_points(threat: ThreatModel, kind: str) -> None:
    asked = question(kind, threat)
    n, count = len(asked.x), 20000 // len(asked.x)
    points = sample_ball(asked.x, asked.eps, threat, count)
    reach = torch.rand(n, count, 1, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points = asked.x[:, None] + (points - asked.x[:, None]) * reach

    def fall(a: Tensor, b: Tensor) -> Tensor:
        logits = [asked.state.classifier(part.flatten(0, 1)).view(n, count, -1) for part in (a, b)]
        distance = torch.linalg.vector_norm((a - b).flatten(2), ord=threat.p, dim=-1).clamp(min=1e-9)
        change = ((logits[0] - logits[1]) @ asked.rows.transpose(1, 2)).abs()
        return (change - 1e-12).clamp(min=0) / distance[..., None]

    centre = asked.x[:, None].expand_as(points)
    reached = asked.state.classifier(points.flatten(0, 1)).view(n, count, -1) @ asked.rows.transpose(1, 2)
    from_centre, between = fall(points, centre).amax(dim=1), fall(points, points.roll(1, dims=1)).amax(dim=1)
    for certifier in PLAIN + CHORDS:
        if not refused(certifier, kind):
            slope = asked.slope(certifier) * (1 + 1e-9)
            assert (from_centre <= slope).all()
            assert certifier.chords or (between <= slope).all()
            assert (certifier.lower(asked.state, asked.x, asked.rows, asked.eps).lower <= reached.amin(dim=1)).all()


@cache
def attacked(kind: str, threat: ThreatModel) -> Tensor:
    return attack(net(kind), inputs(4), (threat,), threat.domain or (-2.0, 3.0), steps=30)[threat].distance


@pytest.mark.machine
@pytest.mark.parametrize("kind", ["mlp", "skip"])
@pytest.mark.parametrize("threat", [L1, L2, L2.within(0, 1), Linf.within(0, 1)], ids=str)
def test_no_attack_and_no_random_point_inside_the_ball_changes_the_prediction(threat: ThreatModel, kind: str) -> None:
    classifier, x = net(kind), inputs(4)
    for certifier in (*PLAIN, *CHORDS, FastLip(shells=4), FastLip(gram=True, rounding_safe=True)):
        if refused(certifier, kind):
            with pytest.raises(UnsupportedError, match="skip connection"):
                certbench.certify(certifier, classifier, x, threat)
            continue
        certificate = certbench.certify(certifier, classifier, x, threat)
        assert (certificate.radius > 0).all()
        assert (certificate.radius <= attacked(kind, threat)).all()
        points = sample_ball(x, certificate.radius, threat, 200)
        predicted = classifier.double()(points.flatten(0, 1)).argmax(dim=1).view(len(x), -1)
        assert (predicted == certificate.prediction[:, None]).all()


@pytest.mark.parametrize("threat", [*NORMS, L2.within(0, 1)], ids=str)
def test_narrower_slopes_are_never_steeper(threat: ThreatModel) -> None:
    """Theorems: a product of intervals is inclusion-monotone, RecurJac's recursion too, and a mask shrinks."""
    for kind in KINDS:
        asked, deep = question(kind, threat), Question(mlp(8, 10, 9, 8, 3), inputs(5).flatten(1)[:, :8], threat)
        for case in (asked, deep) if kind == "mlp" else (asked,):
            for kinds in (FastLip, RecurJac, MaskedProduct):
                if refused(kinds(), kind):
                    continue
                tangents, chords = case.slope(kinds()), case.slope(kinds(chords=True))
                assert (chords <= tangents * (1 + 1e-9)).all()
                assert (chords < 0.98 * tangents).any()


@pytest.mark.parametrize("threat", NORMS, ids=str)
def test_more_shells_are_never_worse(threat: ThreatModel) -> None:
    asked = question("mlp", threat)
    for kinds in (FastLip, RecurJac, MaskedProduct):
        one, eight = (kinds(shells=s).lower(asked.state, asked.x, asked.rows, asked.eps).lower for s in (1, 8))
        assert (eight >= one - 1e-9).all()
        assert (eight > one + 1e-3).any()
    finest = [FastLip(shells=shells, search=Secant(relative=1e-7)) for shells in (1, 8)]
    few, many = (certbench.certify(certifier, network("mlp"), inputs(2), threat).radius for certifier in finest)
    assert (many >= few * (1 - 1e-6)).all()


@pytest.mark.parametrize("kinds", [FastLip, RecurJac, MaskedProduct])
def test_shells_are_refused_with_chords_and_below_one(kinds: type[LocalLipschitz]) -> None:
    with pytest.raises(ConfigError, match="shells need chords: false"):
        kinds(chords=True, shells=2)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="at least 1"):
        kinds(shells=0)  # type: ignore[call-arg]


@pytest.mark.parametrize("certifier", CHORDS, ids=short)
def test_chords_start_at_the_input_and_are_no_lipschitz_constant_of_the_ball(certifier: LocalLipschitz) -> None:
    """max(x, 0) around -1, to both sides by 2: from there it rises by 1/2 of the way, from 0 to 1 by all of it."""
    module = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double()
    for layer, weight in ((module[0], [[1.0]]), (module[2], [[1.0], [0.0]])):
        layer.weight.data = torch.tensor(weight, dtype=torch.float64)
        layer.bias.data.zero_()
    state = NetworkState.of(Classifier(module.eval(), (1,), 2, "relu"), L2)
    region = Region(L2, torch.tensor([[-1.0]], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64))
    rows, bounds = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64), layer_bounds(state.network, region)
    slope = float(certifier.steepness(state, region, rows, bounds).slope)
    low, start, end = (float(state.classifier(torch.tensor([[at]]).double())[0, 0]) for at in (-1.0, 0.0, 1.0))
    assert end - start > 1.9 * slope
    assert math.isclose((end - low) / 2, slope, rel_tol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threat", NORMS, ids=str)
def test_in_small_balls_steepness_is_the_gradients(threat: ThreatModel, kind: str) -> None:
    classifier, x = net(kind), inputs(6)
    state = NetworkState.of(classifier, threat)
    rows = margin_rows(classifier.double()(x).argmax(dim=1), 4)
    region = Region(threat, x.flatten(1), torch.full((6,), 1e-7, dtype=torch.float64))
    slopes = [(z > 0).double() for z in state.network.preactivations(region.x)[:-1]]
    exact = torch.linalg.vector_norm(rows @ jacobian(state.network, slopes), ord=threat.q, dim=-1)
    bounds = layer_bounds(state.network, region)
    for certifier in (FastLip(), FastLip(chords=True, gram=True), RecurJac(), RecurJac(chords=True)):
        if not refused(certifier, kind):
            found = certifier.steepness(state, region, rows, bounds).slope
            torch.testing.assert_close(found, exact, rtol=1e-9, atol=0)


@pytest.mark.parametrize("threat", NORMS, ids=str)
@pytest.mark.parametrize("certifier", PLAIN + CHORDS, ids=short)
def test_linear_networks_have_the_closed_form(certifier: LocalLipschitz, threat: ThreatModel) -> None:
    classifier, x = network("linear"), inputs(8)
    radius = certbench.certify(certifier, classifier, x, threat).radius
    exact = closed_form(classifier, x, threat)
    assert (radius <= exact).all()
    torch.testing.assert_close(radius, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("certifier", CHORDS, ids=short)
def test_chains_of_single_neurons_are_as_steep_as_their_weights_and_slopes(certifier: LocalLipschitz) -> None:
    classifier = mlp(1, 1, 1, 1, 2)
    for i in (0, 2, 4):
        classifier.module[i].weight.data.fill_(3.0)  # type: ignore[index]
        classifier.module[i].bias.data.fill_(-1.0)  # type: ignore[index]
    case = Question(classifier, torch.tensor([[-0.1], [0.2]], dtype=torch.float64), L2, scale=4)
    high = torch.cat(case.slopes(chords=True).high, dim=1)
    assert ((high[1] > 0.5) & (high[1] < 1)).all()
    last = case.rows @ case.state.network.layers[3].maps[3].matrix()
    torch.testing.assert_close(case.slope(certifier), last.abs()[..., 0] * 27 * high.prod(dim=1)[:, None])
