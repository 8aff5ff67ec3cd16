"""The backward engine: bounds hold at sampled points, in pieces as in one, and are shared only by the same question."""

import math

import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import L1, L2, Classifier, Linf, MarginCertifier, ThreatModel
from certbench.core.margins import margin_rows
from certbench.testing import inputs, network, sample_ball
from certbench.verifiers.bounds import backward as relaxation
from certbench.verifiers.bounds.backward import backward, layer_bounds, lower_bounds
from certbench.verifiers.bounds.region import Linear, Region
from certbench.verifiers.bounds.state import NetworkState

THREATS = [L1, L2, Linf, L1.within(0, 1), L2.within(0, 1), Linf.within(0, 1)]


def problem(kind: str, threat: ThreatModel, n: int = 4) -> tuple[NetworkState, Tensor, Region]:
    classifier, x = network(kind), inputs(n)
    eps = torch.tensor([0.01, 0.05, 0.2, 0.7], dtype=torch.float64)[:n] * (1 if threat.p == math.inf else 4)
    return NetworkState.of(classifier, threat), x, Region(threat, x.flatten(1), eps)


@pytest.mark.parametrize("kind", ["linear", "mlp", "cnn", "residual"])
@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("method", ["ibp", "crown", "fast-lin"])
def test_bounds_of_every_layer_and_linear_functions_hold_at_sampled_points(
    kind: str, threat: ThreatModel, method: str
) -> None:
    state, x, region = problem(kind, threat)
    bounds = layer_bounds(state.network, region, method)
    points = sample_ball(x, region.eps, threat, 300).flatten(2)
    layers = state.network.preactivations(points.flatten(0, 1))
    for z, low, high in zip(layers, bounds.lower, bounds.upper, strict=False):
        z = z.view(4, 300, -1)
        assert (z >= low[:, None] - 1e-9).all() and (z <= high[:, None] + 1e-9).all()
    rows = margin_rows(state.classifier(x).argmax(dim=1), 4)
    linear = backward(state.network, rows, len(layers) - 1, bounds)
    margins = layers[-1].view(4, 300, -1) @ rows.mT
    assert (points @ linear.a.mT + linear.b[:, None] <= margins + 1e-9).all()
    assert (region.minimum(linear.a, linear.b)[:, None] <= margins + 1e-9).all()


@pytest.mark.parametrize("kind", ["mlp", "cnn", "residual"])
def test_pieces_give_the_bounds_of_the_whole_and_memory_that_runs_out_makes_smaller_ones(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, _, region = problem(kind, Linf)
    whole = layer_bounds(state.network, region)
    state.network.shared.clear()
    pieces = layer_bounds(state.network, region, entries=1)
    state.network.shared.clear()
    sizes: list[int] = []

    def small(*args: object) -> Linear:
        constant = args[2]
        assert isinstance(constant, Tensor)
        sizes.append(constant.shape[1])
        if constant.shape[1] > 5:
            raise MemoryError
        return whole_size(*args)  # type: ignore[arg-type]

    whole_size = relaxation._descended
    monkeypatch.setattr(relaxation, "_descended", small)
    scarce = layer_bounds(state.network, region)
    assert max(sizes) > 5
    for other in (pieces, scarce):
        for a, b in zip((*whole.lower, *whole.upper), (*other.lower, *other.upper), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.machine
def test_the_memory_of_alpha_crown_is_an_option_that_does_not_change_its_bounds() -> None:
    classifier, x = network("cnn"), inputs(3)
    radii = [
        certbench.certify({"name": "alpha-crown", "layers": 2, "entries": entries}, classifier, x, Linf).radius
        for entries in (200, 2**24)
    ]
    torch.testing.assert_close(*radii, rtol=2e-3, atol=0)


def test_bounds_are_computed_once_for_the_same_question_and_anew_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    state, _, region = problem("mlp", Linf)
    state.network.shared.clear()
    counted: list[int] = []

    def count(*args: object) -> Linear:
        counted.append(1)
        return once_more(*args)  # type: ignore[arg-type]

    once_more = relaxation._descended
    monkeypatch.setattr(relaxation, "_descended", count)
    first = layer_bounds(state.network, region)
    once = len(counted)
    assert once > 0
    assert layer_bounds(state.network, Region(Linf, region.x.clone(), region.eps.clone())) is first
    assert len(counted) == once
    for other in (
        Region(Linf, region.x, region.eps * 1.01),
        Region(Linf, region.x + 1e-9, region.eps),
        Region(Linf.within(0, 1), region.x, region.eps),
        Region(L2, region.x, region.eps),
        region[:2],
    ):
        assert layer_bounds(state.network, other) is not first
    assert layer_bounds(state.network, region, "fast-lin") is not first
    assert len(state.network.shared) <= relaxation.SHARED


def test_shared_bounds_cannot_be_changed_by_who_uses_them() -> None:
    """Every certifier on the engine, one after the other: the bounds that the first one left behind still stand."""
    state, x, region = problem("mlp", Linf, n=2)
    first = layer_bounds(state.network, region)
    kept = [end.clone() for end in (*first.lower, *first.upper)]
    for name in ("alpha-crown", "lp", "branch-and-bound"):
        ladder = {"search": {"name": "ladder", "eps": [float(region.eps[0])]}} if name != "branch-and-bound" else {}
        certbench.certify({"name": name, **ladder}, state.classifier, x, Linf)
    for before, now in zip(kept, (*first.lower, *first.upper), strict=True):
        assert torch.equal(before, now)


class _Wide(nn.Module):
    """Functions that saturate, or rise fast: lines around them are far away on wide balls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(16, 6), nn.LayerNorm(6), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x.flatten(1))
        return self.last(torch.cat([torch.log_softmax(z, dim=1), torch.tanh(self.norm(z))], dim=1))


@pytest.mark.parametrize("name", ["crown-ibp", "crown", "alpha-crown"])
def test_wide_balls_are_bounded_at_least_as_well_as_by_intervals_and_soundly(name: str) -> None:
    torch.manual_seed(0)
    classifier, n = Classifier(_Wide().double().eval(), (1, 4, 4), 4), 9
    x = inputs(1).expand(n, -1, -1, -1).contiguous()
    eps = 10.0 ** torch.arange(-6, 3, dtype=torch.float64)
    label = classifier(x).argmax(dim=1)
    for threat in (L2, Linf):
        found = []
        for other in (name, "ibp"):
            certifier = certbench.build({"name": other, "engine": "own"})
            assert isinstance(certifier, MarginCertifier)
            found.append(certifier.margins(certifier.prepare(classifier, threat), x, label, eps).lower)
        assert (found[0] >= found[1] - 1e-9 * found[1].abs()).all()
        points = sample_ball(x, eps, threat, 200)
        margins = classifier(points.flatten(0, 1)).view(n, 200, 4) @ margin_rows(label, 4).mT
        assert (found[0][:, None] <= margins + 1e-9).all()


def test_margins_of_piecewise_linear_networks_are_those_of_the_backward_pass() -> None:
    state, x, region = problem("cnn", Linf)
    rows, bounds = margin_rows(state.classifier(x).argmax(dim=1), 4), layer_bounds(state.network, region)
    linear = backward(state.network, rows, len(state.network.hidden), bounds)
    found = lower_bounds(state.network, region, rows, bounds)
    torch.testing.assert_close(found.lower, region.minimum(linear.a, linear.b), rtol=1e-12, atol=1e-12)
