"""Zonotopes against Fast-Lin found backwards, closed forms, sampled points and hand-made networks."""

import math

import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import L1, L2, Classifier, Linf, ThreatModel
from certbench.core.certifier import MarginCertifier
from certbench.core.margins import margin_rows
from certbench.testing import inputs, sample_ball
from certbench.verifiers.bounds.backward import layer_bounds
from certbench.verifiers.bounds.region import Region
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.linear import zonotope
from certbench.verifiers.linear.zonotope import SLOPES, DeepZ, HybridZonotope, Zonotope
from tests.support.questions import THREATS, fast_lin, question

ALL: list[MarginCertifier[NetworkState]] = [DeepZ(), *(HybridZonotope(name) for name in SLOPES)]


@pytest.mark.parametrize("kind", ["linear", "mlp", "cnn", "residual"])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_deepz_is_fast_lin_forwards(threat: ThreatModel, kind: str) -> None:
    state, x, rows, eps = question(kind, threat)
    region = Region(threat, x.flatten(1), eps)
    expected, bounds = fast_lin(state.network, region, rows)
    assert kind == "linear" or any(bool(bounds.unstable(i).any()) for i in range(len(bounds.lower)))
    torch.testing.assert_close(DeepZ().lower(state, x, rows, eps).lower, expected, rtol=1e-9, atol=1e-9)


def test_intervals_change_nothing_where_they_are_wider() -> None:
    """In L2 here; elsewhere the engine's layer bounds, met with intervals, give other margins, better or worse."""
    state, x, rows, eps = question("mlp", L2)
    region = Region(L2, x.flatten(1), eps)
    met = fast_lin(state.network, region, rows, layer_bounds(state.network, region, "fast-lin"))[0]
    torch.testing.assert_close(DeepZ().lower(state, x, rows, eps).lower, met, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("certifier", ALL, ids=str)
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_the_linear_function_lies_below_the_margins_on_the_ball(
    certifier: MarginCertifier[NetworkState], threat: ThreatModel
) -> None:
    for kind in ("mlp", "cnn", "residual"):
        state, x, rows, eps = question(kind, threat)
        bounds = certifier.lower(state, x, rows, eps)
        points = sample_ball(x, eps, threat, 500)
        values = torch.einsum("nkc,nsc->nsk", rows, state.classifier(points.flatten(0, 1)).view(len(x), 500, -1))
        assert bounds.coefficients is not None and bounds.centre is not None
        steps = (points - x[:, None]).flatten(2)
        below = bounds.centre[:, None] + torch.einsum("nkd,nsd->nsk", bounds.coefficients, steps)
        assert (below <= values + 1e-9).all()
        assert (bounds.lower[:, None] <= below + 1e-9).all()


@pytest.mark.parametrize("certifier", ALL, ids=str)
@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_a_linear_classifier_is_bounded_exactly(certifier: MarginCertifier[NetworkState], threat: ThreatModel) -> None:
    state, x, rows, eps = question("linear", threat)
    weight = state.classifier.module[1].weight  # type: ignore[index]
    lengths = torch.linalg.vector_norm(rows @ weight, ord=threat.q, dim=-1)
    exact = (rows @ state.classifier(x)[..., None]).squeeze(-1) - eps[:, None] * lengths
    torch.testing.assert_close(certifier.lower(state, x, rows, eps).lower, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "x", "low", "high"),
    [
        ("box", 1.0, 0.0, 3.0),
        ("diagonal", 1.0, -1.0, 4.0),
        ("switch", 1.0, -1.0, 4.0),
        ("least", 1.0, -0.75, 3.0),
        ("switch", -1.0, 0.0, 1.0),
        ("least", -1.0, -0.75, 1.0),
    ],
)
@pytest.mark.parametrize("symbols", [True, False])
def test_a_relu_on_minus_one_to_three_or_minus_three_to_one_by_hand(
    name: str, x: float, low: float, high: float, symbols: bool
) -> None:
    region = Region(Linf, torch.tensor([[x]], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64))
    z = Zonotope.around(region.x)
    ends = z.relu(*z.ends(region), SLOPES[name], symbols).ends(region)
    assert [float(end) for end in ends] == pytest.approx([low, high], abs=1e-15)


class Back(nn.Module):
    """relu(relu(x) + 10) - relu(x), which is 10 everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(x)
        return torch.relu(h + 10) - h


def test_symbols_cancel_between_branches_and_boxes_do_not() -> None:
    classifier = Classifier(Back().eval(), (2,), 2)
    state = NetworkState.of(classifier, Linf)
    rows = torch.eye(2, dtype=torch.float64)[None]
    x, eps = torch.tensor([[0.3, -0.2]], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    assert DeepZ().lower(state, x, rows, eps).lower.tolist()[0] == pytest.approx([10.0, 10.0], abs=1e-12)
    # On [-0.7, 1.3] and [-1.2, 0.8] the box is u l / (u - l) / 2 = 0.2275 and 0.24 wide, and is met twice.
    box = HybridZonotope("least").lower(state, x, rows, eps).lower
    assert box.tolist()[0] == pytest.approx([10 - 2 * 0.2275, 10 - 2 * 0.24], abs=1e-12)


def test_before_a_second_relu_layer_a_box_is_as_good_as_symbols() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
    state, x = NetworkState.of(Classifier(module.eval(), (1, 4, 4), 4), Linf), inputs(5)
    rows = margin_rows(state.classifier(x).argmax(dim=1), 4)
    eps = torch.full((5,), 0.2, dtype=torch.float64)
    symbols, box = (one.lower(state, x, rows, eps).lower for one in (DeepZ(), HybridZonotope("least")))
    torch.testing.assert_close(symbols, box, rtol=1e-12, atol=1e-12)
    state, x, rows, eps = question("mlp", Linf)
    symbols, box = (one.lower(state, x, rows, eps).lower for one in (DeepZ(), HybridZonotope("least")))
    assert float(symbols.mean()) > float(box.mean()) + 0.1


@pytest.mark.parametrize("certifier", ALL, ids=str)
@pytest.mark.parametrize("kind", ["cnn", "residual"])
def test_neighbours_and_chunks_do_not_matter(
    certifier: MarginCertifier[NetworkState], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, x, rows, eps = question(kind, Linf.within(0, 1))
    whole = certifier.lower(state, x, rows, eps).lower
    single = torch.cat([certifier.lower(state, *(t[i : i + 1] for t in (x, rows, eps))).lower for i in range(len(x))])
    monkeypatch.setattr(zonotope, "ENTRIES", 1)
    torch.testing.assert_close(single, whole, rtol=1e-12, atol=1e-12)
    assert torch.equal(certifier.lower(state, x, rows, eps).lower, single)
    assert certifier.lower(state, *(t[:0] for t in (x, rows, eps))).lower.shape == (0, 3)


@pytest.mark.parametrize("symbols", [True, False])
@pytest.mark.parametrize("name", SLOPES)
def test_nan_bounds_stay_nan(name: str, symbols: bool) -> None:
    x = torch.zeros(1, 3, dtype=torch.float64)
    nan = torch.tensor([[math.nan, 0.0, 1.0]], dtype=torch.float64)
    region = Region(Linf, x, x.new_ones(1))
    for low, high in ((nan, nan + 1), (x - 1, nan), (nan, x + 2)):
        image = Zonotope.around(x).relu(low, high, SLOPES[name], symbols)
        assert all(bool(end[0, 0].isnan()) for end in image.ends(region))


def test_other_activations_and_unknown_transformers_are_refused() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4)).eval()
    for certifier in ALL:
        with pytest.raises(certbench.UnsupportedError, match="Tanh"):
            certbench.certify(certifier, Classifier(module, (1, 4, 4), 4), inputs(2), L2)
    with pytest.raises(certbench.ConfigError, match="switch") as caught:
        HybridZonotope("smooth")
    assert caught.value.path == ("transformer",)
