"""The dual network against the engine, zonotopes, Wong and Kolter's own package, and numbers by hand."""

import itertools
import math
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import L1, L2, Certificate, Classifier, Linf, ThreatModel
from certbench.core.margins import margin_rows
from certbench.core.search import Ladder
from certbench.networks.layers import Layer, Network
from certbench.networks.maps import Dense
from certbench.testing import inputs, sample_ball
from certbench.verifiers.bounds.region import Region
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.linear import wong_kolter
from certbench.verifiers.linear.crown import Crown
from certbench.verifiers.linear.wong_kolter import DualNetwork, WongKolter, cascade, estimated_l1, layerwise
from certbench.verifiers.linear.zonotope import DeepZ
from tests.support.questions import THREATS, fast_lin, question


@pytest.mark.parametrize("kind", ["linear", "mlp", "cnn", "residual"])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_it_agrees_with_the_engine_and_with_zonotopes(threat: ThreatModel, kind: str) -> None:
    state, x, rows, eps = question(kind, threat)
    region = Region(threat, x.flatten(1), eps)
    expected, bounds = fast_lin(state.network, region, rows)
    found = layerwise(state.network, region)
    for ours, theirs in zip((*found.lower, *found.upper), (*bounds.lower, *bounds.upper), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    lower = WongKolter().lower(state, x, rows, eps).lower
    torch.testing.assert_close(lower, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(lower, DeepZ().lower(state, x, rows, eps).lower, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["mlp", "cnn", "residual"])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_no_sampled_point_lies_outside_the_bounds(threat: ThreatModel, kind: str) -> None:
    state, x, rows, eps = question(kind, threat)
    points = sample_ball(x, eps, threat, 500)
    layers = state.network.preactivations(points.flatten(0, 1).flatten(1))
    bounds = layerwise(state.network, Region(threat, x.flatten(1), eps))
    for low, up, z in zip(bounds.lower, bounds.upper, layers, strict=False):
        assert (low[:, None] <= z.view(len(x), 500, -1) + 1e-9).all()
        assert (up[:, None] >= z.view(len(x), 500, -1) - 1e-9).all()
    margins = torch.einsum("nkc,nsc->nsk", rows, layers[-1].view(len(x), 500, -1))
    assert (WongKolter().lower(state, x, rows, eps).lower[:, None] <= margins + 1e-9).all()


@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_a_linear_classifier_is_bounded_exactly(threat: ThreatModel) -> None:
    state, x, rows, eps = question("linear", threat)
    weight = state.classifier.module[1].weight  # type: ignore[index]
    lengths = torch.linalg.vector_norm(rows @ weight, ord=threat.q, dim=-1)
    exact = (rows @ state.classifier(x)[..., None]).squeeze(-1) - eps[:, None] * lengths
    torch.testing.assert_close(WongKolter().lower(state, x, rows, eps).lower, exact, rtol=1e-12, atol=1e-12)


def test_one_relu_by_hand() -> None:
    """relu(x) on [-1, 3]: nu is -3/4 or 3/4, J(x, 1) = 3/4 - 2 * 3/4, J(x, -1) = -3/4 - 2 * 3/4 - 3/4."""
    one = torch.ones(1, 1, dtype=torch.float64)
    net = Network((Layer.of({0: Dense(one)}, one[0] * 0), Layer.of({1: Dense(one)}, one[0] * 0)), 1)
    region = Region(Linf, one, 2 * one[0])
    bounds = layerwise(net, region)
    assert [float(end) for end in (*bounds.lower, *bounds.upper)] == [-1.0, 3.0]
    below, above = DualNetwork.of(net, one[None], 1, bounds).ends(region)
    assert [float(below), float(above)] == [-0.75, 3.0]


def test_neighbours_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    state, x, rows, eps = question("cnn", Linf.within(0, 1))
    whole = WongKolter().lower(state, x, rows, eps).lower
    single = [WongKolter().lower(state, *(t[i : i + 1] for t in (x, rows, eps))).lower for i in range(len(x))]
    torch.testing.assert_close(torch.cat(single), whole, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(wong_kolter, "ENTRIES", 1)
    torch.testing.assert_close(WongKolter().lower(state, x, rows, eps).lower, whole, rtol=1e-12, atol=1e-12)
    assert WongKolter().lower(state, *(t[:0] for t in (x, rows, eps))).lower.shape == (0, 3)


def test_nan_bounds_have_no_slope() -> None:
    nan, one = torch.tensor([math.nan], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    for low, up in ((nan, nan), (-one, nan), (nan, one)):
        assert wong_kolter.slope(low, up).isnan().all()


@pytest.mark.parametrize("width", [1e308, 1.5e308])
def test_bounds_whose_width_overflows_prove_nothing(width: float) -> None:
    """Ask for a ball in which max(x - 1, 0) > 0.5 somewhere, whose bounds are further apart than the largest double."""
    layers = nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)
    for layer, weight, bias in ((layers[0], [[1.0]], [-1.0]), (layers[2], [[-1.0], [0.0]], [0.5, 0.0])):
        assert isinstance(layer, nn.Linear)
        layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
    classifier = Classifier(nn.Sequential(*layers).eval(), (1,), 2)
    for certifier in (WongKolter(search=Ladder((width,))), Crown(search=Ladder((width,)))):
        state = certifier.prepare(classifier, Linf)
        assert float(certifier.certify(state, torch.zeros(1, 1, dtype=torch.float64), [0]).radius) == 0.0


def test_other_activations_are_refused() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Sigmoid(), nn.Linear(8, 4)).eval()
    with pytest.raises(certbench.UnsupportedError, match="Sigmoid"):
        certbench.certify(WongKolter(), Classifier(module, (1, 4, 4), 4), inputs(2), L2)


class Skip(nn.Module):
    """Computes what a `DenseSequential` with a skip connection computes."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.net[0], self.net[2].Ws, self.net[4].Ws  # type: ignore[union-attr]
        h = torch.relu(first(x))
        return self.net[6](torch.relu(third[0](h) + third[2](torch.relu(second[0](h)))))  # type: ignore[index, operator]


@pytest.mark.parametrize("kind", ["mlp", "conv", "skip"])
@pytest.mark.parametrize(
    ("threat", "options"),
    [
        (Linf, {"norm_type": "l1"}),
        (L2, {"norm_type": "l2"}),
        (Linf.within(0, 1), {"norm_type": "l1", "bounded_input": True}),
    ],
    ids=["Linf", "L2", "Linf in [0, 1]"],
)
def test_it_agrees_with_the_authors_package(threat: ThreatModel, options: dict[str, object], kind: str) -> None:
    authors = pytest.importorskip("convex_adversarial", reason="locuslab/convex_adversarial is not installed")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net: nn.Sequential
        if kind == "mlp":
            sizes = [36, 20, 20, 15]
            hidden = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
            net = nn.Sequential(*hidden, nn.Linear(15, 5))
        elif kind == "conv":
            convolutions = [nn.Conv2d(1, 3, 4, 2, 1), nn.ReLU(), nn.Conv2d(3, 5, 3, 1, 1), nn.ReLU()]
            net = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(45, 12), nn.ReLU(), nn.Linear(12, 5))
        else:
            second = authors.Dense(nn.Linear(10, 10))
            third = authors.Dense(nn.Linear(10, 12), None, nn.Linear(10, 12))
            relus = [nn.ReLU() for _ in range(3)]
            net = authors.DenseSequential(
                nn.Linear(36, 10), relus[0], second, relus[1], third, relus[2], nn.Linear(12, 5)
            )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    net = net.double().eval()
    shape = (1, 6, 6) if kind == "conv" else (36,)
    x = torch.rand(5, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label = net(x).argmax(dim=1)
    state = NetworkState.of(Classifier(Skip(net).eval() if kind == "skip" else net, shape, 5), threat)
    for eps in (0.01, 0.1, 0.3):
        with torch.no_grad():
            theirs = -authors.RobustBounds(net, eps, **options)(x, label)
        theirs = theirs[torch.arange(5) != label[:, None]].view(5, 4)
        ours = WongKolter().lower(state, x, margin_rows(label, 5), x.new_full((5,), eps)).lower
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.machine
def test_projections_estimate_the_l1_norms_and_do_not_bound_them() -> None:
    state, x, _, eps = question("residual", Linf)
    bounds = layerwise(state.network, Region(Linf, x.flatten(1), eps))
    last = len(state.network.hidden)
    eye = torch.eye(4, dtype=torch.float64)[None]
    exact = DualNetwork.of(state.network, eye, last, bounds).nu_hat_1.abs().sum(dim=-1)
    estimate = estimated_l1(state.network, bounds, last, 10001, seed=0)
    torch.testing.assert_close(estimate, exact, rtol=0.1, atol=0)
    few = [estimated_l1(state.network, bounds, last, 21, seed) for seed in (0, 0, 1)]
    assert torch.equal(few[0], few[1]) and not torch.equal(few[0], few[2])
    assert (torch.cat(few) < torch.cat([exact] * 3)).any()
    first = estimated_l1(state.network, bounds, 0, 10001, seed=0)
    weight = state.network.layers[0].maps[0].matrix()
    torch.testing.assert_close(first[0], weight.abs().sum(dim=1), rtol=0.1, atol=0)
    with pytest.raises(certbench.ConfigError, match="layers 0 to"):
        estimated_l1(state.network, bounds, last + 1, 5, seed=0)


def answers(prediction: list[int], radius: list[float]) -> Certificate:
    return Certificate.of(torch.tensor(prediction), torch.tensor(radius, dtype=torch.float64))


def test_the_first_stage_that_certifies_answers() -> None:
    stages = [answers([0, 1, 2, 3], [0.2, 0.0, 0.05, 0.1]), answers([1, 1, 1, 1], [0.2, 0.3, 0.05, 0.0])]
    found = cascade(stages, 0.1)
    assert found.stage.tolist() == [0, 1, 1, 0]
    assert found.prediction.tolist() == [0, 1, 1, 3]
    assert found.certified.tolist() == [True, True, False, True]
    with pytest.raises(certbench.ConfigError):
        cascade([], 0.1)
    with pytest.raises(certbench.ConfigError):
        cascade([stages[0], answers([1], [0.1])], 0.1)


def test_a_cascade_can_change_its_answer_inside_a_certified_ball() -> None:
    """On the line, stage 1 says 1 for x > 0 and else 0, stage 2 always 0. Why `cascade` returns no certificate."""
    x = [0.1, 1.05]
    stages = [answers([int(v > 0) for v in x], [abs(v) for v in x]), answers([0, 0], [math.inf, math.inf])]
    found = cascade(stages, 1.0)
    assert found.certified.all() and abs(x[1] - x[0]) < 1.0
    assert found.prediction.tolist() == [0, 1]


@pytest.mark.slow
def test_the_published_network_has_its_first_hundred_verified(bundle: ModuleType) -> None:
    x, y = bundle.dataset("mnist-test")
    module, _ = bundle.network("wk/mnist")
    classifier = Classifier(module, (1, 28, 28), 10, "wk/mnist")
    certifier = WongKolter(Ladder((0.1,)))
    certificate = certbench.certify(certifier, classifier, x[:100].double(), Linf, batch_size=10)
    assert int(((certificate.radius >= 0.1) & (certificate.prediction == y[:100])).sum()) == 96
