"""ECLipsE-Fast and LipSDP: constants that are known, laws of order, and no constant that two points contradict."""

import math
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import scipy.io
import torch
from torch import Tensor, nn

from certbench import L1, L2, Classifier, Linf, ThreatModel, certify
from certbench.core.classifier import Regressor
from certbench.errors import ConfigError, UnsupportedError
from certbench.models import zoo
from certbench.networks.reading import relu_network
from certbench.verifiers.lipschitz import folding
from certbench.verifiers.lipschitz.lipsdp import DenseChain, Eclipse, LipSDP, whole_constant
from certbench.verifiers.lipschitz.margin import GlobalLipschitz, LayerwiseLipschitz
from certbench.verifiers.lipschitz.multipliers import search
from certbench.verifiers.lipschitz.multipliers.barrier import Inequality
from certbench.verifiers.lipschitz.multipliers.certificate import (
    Multipliers,
    evaluate,
    positive,
    product_bound,
    prove,
    start,
)
from certbench.verifiers.lipschitz.multipliers.search import solve

pytestmark = pytest.mark.machine


def module(*sizes: int, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts: list[nn.Module] = []
        for before, after in pairwise(sizes):
            parts += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*parts[:-1]).eval()


def classifier(*sizes: int, seed: int = 0) -> Classifier:
    return Classifier(module(*sizes, seed=seed), (sizes[0],), sizes[-1])


def chain(*matrices: Tensor) -> DenseChain:
    weights = [folding.linear(matrix) for matrix in matrices]
    return DenseChain(tuple(weights[:-1]), weights[-1])


def random_chain(*sizes: int, seed: int = 0) -> DenseChain:
    return chain(*(part.weight.detach() for part in module(*sizes, seed=seed) if isinstance(part, nn.Linear)))


def table(certifier: GlobalLipschitz, net: Classifier, threat: ThreatModel = L2) -> Tensor:
    return certifier.prepare(net, threat).constants


def steepest(net: Classifier, threat: ThreatModel, n: int = 500) -> Tensor:
    """The largest dual norms of gradients of f_c - f_j, and of f_c alone, at random points."""
    x = torch.randn(n, *net.input_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(net.double().module))(x[:, None]).reshape(n, net.num_classes, -1)
    jacobian = torch.cat([jacobian, torch.zeros_like(jacobian[:, :1])], dim=1)
    differences = jacobian[:, :, None] - jacobian[:, None]
    return torch.linalg.vector_norm(differences, ord=threat.q, dim=-1).amax(dim=0)


ALL = [
    Eclipse(),
    LipSDP(multipliers="shared", iterations=50),
    LipSDP(form="layer", iterations=50),
    LipSDP(iterations=50),
    LipSDP(solver="gradient", iterations=50),
]


@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_no_gradient_is_steeper_and_no_constant_above_the_product(threat: ThreatModel) -> None:
    net = classifier(6, 12, 10, 3)
    least, most = steepest(net, threat), table(LayerwiseLipschitz(rule="pairwise"), net, threat)
    for certifier in ALL:
        constants = table(certifier, net, threat)
        assert torch.equal(constants, constants.T)
        assert (constants >= least).all(), certifier
        if threat == L2:
            assert (constants <= most * (1 + 1e-9)).all(), certifier


def test_two_points_never_move_apart_faster() -> None:
    net = classifier(4, 8, 8, 3, seed=3)
    constants = table(LipSDP(), net)
    x = 10 * torch.randn(20000, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    f = net.double()(x)
    margins = f[:, :, None] - f[:, None]
    moved = (margins[::2] - margins[1::2]).abs() / (x[::2] - x[1::2]).norm(dim=1)[:, None, None]
    assert (moved <= constants[:-1, :-1] * (1 + 1e-12)).all()
    assert (moved.amax(dim=0) >= 0.4 * constants[:-1, :-1]).all()  # so the law could fail


def test_each_method_refines_the_one_before() -> None:
    """Theorems, up to what the optimisers leave: product >= ECLipsE-Fast >= layer >= neuron, shared >= pair."""
    net, slack = classifier(8, 16, 16, 4, seed=1), 1 + 2e-4
    eclipse, layer = table(Eclipse(), net), table(LipSDP(form="layer"), net)
    shared, neuron = table(LipSDP(multipliers="shared"), net), table(LipSDP(), net)
    pairs = ~torch.eye(5, dtype=torch.bool)
    pairs[-1] = pairs[:, -1] = False  # a classifier's own logits have shared multipliers
    for above, below in ((eclipse, layer), (layer, neuron), (eclipse, shared), (shared, neuron)):
        assert (below[pairs] <= above[pairs] * slack).all()
        assert (below[pairs] < 0.999 * above[pairs]).any()


def test_one_hidden_layer_where_the_answer_is_known() -> None:
    """f = sum of relu(w_i x) with orthogonal w_i of different lengths: the constant is that of the steepest piece."""
    directions = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    lengths = torch.tensor([1.0, 2.0, 3.0, 0.5, 1.5], dtype=torch.float64)
    one = chain(lengths[:, None] * directions, torch.ones(1, 5, dtype=torch.float64))
    exact = float(lengths.norm())
    for solver in ("newton", "gradient"):
        found = whole_constant(one, solver=solver)
        assert exact <= found <= exact * (1 + 1e-4)
    assert float(product_bound(one.weights, one.last, whole=True)) > 1.5 * exact


def test_the_form_network_would_be_no_bound() -> None:
    """T = (e_1 - e_2)(e_1 - e_2)^T, which "LipSDP-Network" allows, gives 0.1 for relu(x) - relu(0.9 x - 10)."""
    weight = torch.tensor([[1.0, 0.0], [0.9, 0.0]], dtype=torch.float64)
    row = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    coupling, rho = row.T @ row, 0.1**2
    top = torch.cat([rho * torch.eye(2, dtype=torch.float64), -weight.T @ coupling], dim=1)
    bottom = torch.cat([-coupling @ weight, 2 * coupling - row.T @ row], dim=1)
    assert float(torch.linalg.eigvalsh(torch.cat([top, bottom]))[0]) > -1e-12

    def f(x: float) -> float:
        z = weight @ torch.tensor([x, 0.0], dtype=torch.float64) + torch.tensor([0.0, -10.0], dtype=torch.float64)
        return float(row @ z.clamp(min=0))

    assert f(1.0) - f(0.0) == 1.0
    with pytest.raises(ConfigError, match="no bound"):
        LipSDP(form="network")
    for solver in ("newton", "gradient"):
        assert 1.0 <= whole_constant(chain(weight, row), solver=solver) <= 1.001


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_no_multipliers_prove_too_much(p: float) -> None:
    net = random_chain(5, 7, 6, 1)
    best = whole_constant(net, p)
    proved = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        first = start(net.weights, p)
        parts = [part + 0.7 * torch.randn(part.shape, generator=generator, dtype=part.dtype) for part in first.hidden]
        entry = first.entry + (torch.randn(first.entry.shape, generator=generator, dtype=torch.float64) if p > 2 else 0)
        found = prove(net.weights, net.last, Multipliers(tuple(parts), entry), p)
        assert found.isinf().all() or float(found) >= best * (1 - 1e-4)
        proved += int(found.isfinite())
    assert 0 < proved < 60


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_multipliers_that_are_too_large_in_one_layer_prove_nothing(layer: int) -> None:
    for seed in range(10):
        net = random_chain(5, 7, 7, 7, 1, seed=seed)
        first = start(net.weights)
        parts = [part + (math.log(100) if i == layer else 0) for i, part in enumerate(first.hidden)]
        assert prove(net.weights, net.last, first).isfinite().all()
        assert prove(net.weights, net.last, Multipliers(tuple(parts), first.entry)).isinf().all()


def test_the_proof_is_tight_and_refuses_what_is_barely_indefinite() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(30, 20, generator=generator, dtype=torch.float64)
    gram, eye = root.T @ root, torch.eye(20, dtype=torch.float64)
    least = torch.linalg.eigvalsh(gram)[0]
    for shift, answer in ((-1e-10, True), (0.0, False), (1e-14, False)):
        matrix = gram - (least + shift) * eye
        assert bool(positive(matrix[None, :8, :8], matrix[None, 8:, :8], matrix[None, 8:, 8:])) == answer
    error = torch.full((1, 12, 8), 1e-9, dtype=torch.float64)
    matrix = gram - (least - 1e-10) * eye
    assert not bool(positive(matrix[None, :8, :8], matrix[None, 8:, :8], matrix[None, 8:, 8:], error))
    assert not bool(positive(eye[None, :8, :8] * math.nan, matrix[None, 8:, :8], matrix[None, 8:, 8:]))


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_derivatives(p: float) -> None:
    net = random_chain(4, 6, 5, 3)
    matrices = [weight.weight for weight in net.weights]
    first, rows = start(net.weights, p), net.last.weight[None]
    for whole in (False, True):
        _, slopes = evaluate(matrices, rows, first, p, whole)
        parts = [*first.hidden] + ([first.entry] if p == math.inf else [])
        for i, part in enumerate(parts):
            for k in range(part.shape[1]):
                ends = []
                for h in (1e-5, -1e-5):
                    moved = [*first.hidden, first.entry]
                    moved[i] = part.clone()
                    moved[i][0, k] += h
                    value = evaluate(matrices, rows, Multipliers(tuple(moved[:-1]), moved[-1]), p, whole)[0]
                    ends.append(float(value.mean()))
                slope = [*slopes.hidden, slopes.entry][i][0, k]
                assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(slope), abs=1e-7)


@pytest.mark.parametrize("fewer", [False, True])
def test_the_barriers_derivatives(fewer: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.cat([0.3 * torch.randn(5, 3, generator=generator), torch.eye(5)], dim=1).double()
    eye = torch.eye(5, dtype=torch.float64)
    matrix = Inequality(u, 0.1 * eye[:2, :2], None, None, 0 * eye[4])
    if fewer:
        matrix = Inequality(u, 0.1 * eye[:2, :2], torch.ones(3, 1, dtype=torch.float64), eye[:, :4], 2 * eye[4])
    x = torch.rand(5 if fewer else 8, generator=generator, dtype=torch.float64) + 1

    def barrier(x: Tensor) -> Tensor:
        f = matrix.factor(x)
        assert f is not None
        return -2 * f.diagonal().log().sum()

    found = matrix.factor(x)
    assert found is not None
    slope, curvature = matrix.derivatives(found)
    assert torch.allclose(slope, torch.autograd.functional.jacobian(barrier, x))
    assert torch.allclose(curvature, torch.autograd.functional.hessian(barrier, x))


@pytest.mark.parametrize("p", [2.0, math.inf])
@pytest.mark.parametrize("layer", [False, True])
def test_the_barrier_method_finds_what_clarabel_finds(solvers: None, p: float, layer: bool) -> None:
    net = random_chain(5, 8, 7, 1, seed=2)
    value, _ = solve("clarabel", net.weights, net.last.weight, start(net.weights, p), p, layer=layer)
    assert whole_constant(net, p, layer=layer) == pytest.approx(value, rel=2e-4)
    if p == 2:
        for solver in ("scs", "clarabel"):
            assert whole_constant(net, p, layer=layer, solver=solver) == pytest.approx(value, rel=2e-3)


@pytest.mark.parametrize("iterations", [1, 25])
def test_a_solver_that_stops_early_proves_enough(
    solvers: None, monkeypatch: pytest.MonkeyPatch, iterations: int
) -> None:
    monkeypatch.setitem(search.SETTINGS, "scs", {"max_iters": iterations})  # type: ignore[attr-defined]
    net = random_chain(8, 16, 16, 1, seed=1)
    assert whole_constant(net, solver="scs") >= whole_constant(net) * (1 - 1e-4)


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_a_solver_that_claims_too_little_proves_enough(
    solvers: None, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """Its multipliers are too small, or so large that they prove nothing, and its constant is a hundredth."""
    net = random_chain(8, 16, 16, 1, seed=1)
    first, optimum = start(net.weights), whole_constant(net)
    parts = tuple(part + math.log(factor) for part in first.hidden)
    claimed = Multipliers(parts, first.entry)
    assert prove(net.weights, net.last, claimed).isinf().all() or factor < 1
    monkeypatch.setattr(search, "solve", lambda *_, **options: (0.01 * optimum, claimed))
    found = whole_constant(net, solver="scs")
    assert optimum * (1 - 1e-4) <= found <= whole_constant(net, solver="gradient") * (1 + 1e-9)


def test_positive_weights_are_solved_exactly() -> None:
    """All slopes 1 is the steepest choice, so the constant is the norm of the product."""
    matrices = [torch.rand(n, m, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for m, n in SIZES]
    exact = float(torch.linalg.matrix_norm(torch.linalg.multi_dot(matrices[::-1]), 2))
    assert exact <= whole_constant(chain(*matrices)) <= exact * (1 + 1e-4)


SIZES = ((3, 8), (8, 9), (9, 4))


def test_published_constants(bundle: ModuleType) -> None:
    """As in the authors' README; for mnist it counts multipliers of a few pairs in, which gain nothing there."""
    folder = Path(bundle.HERE) / "networks" / "lipsdp"

    def read(name: str) -> DenseChain:
        cells = scipy.io.loadmat(str(folder / name))["weights"][0]
        return chain(*(torch.tensor(cell, dtype=torch.float64) for cell in cells))

    random, mnist = read("random_weights.mat"), read("mnist_weights.mat")
    assert round(whole_constant(random), 3) == 36.482
    assert round(whole_constant(random, layer=True), 3) == 39.839
    assert whole_constant(mnist) == pytest.approx(24.365, abs=2e-3)


def test_degenerate_networks() -> None:
    empty, same = module(3, 4, 4, 2), module(3, 4, 4, 2)
    with torch.no_grad():
        empty[2].weight.zero_()  # type: ignore[operator]
        same[4].weight[1] = same[4].weight[0]  # type: ignore[index]
    dead = module(3, 40, 4, 2)
    with torch.no_grad():
        dead[0].weight[5:].mul_(1e-20)  # type: ignore[index]
        dead[0].weight[30:] = 0  # type: ignore[index]
        dead[2].weight[:, :3] = 0  # type: ignore[index]
    for certifier in ALL:
        assert (table(certifier, Classifier(empty, (3,), 2)) == 0).all()
        assert float(table(certifier, Classifier(same, (3,), 2))[0, 1]) < 1e-12
        constants = table(certifier, Classifier(dead, (3,), 2))
        assert (constants >= steepest(Classifier(dead, (3,), 2), L2)).all()
        assert (constants <= table(LayerwiseLipschitz(rule="pairwise"), Classifier(dead, (3,), 2)) * (1 + 1e-9)).all()
        linear = classifier(3, 2)
        assert torch.allclose(table(certifier, linear), table(LayerwiseLipschitz(), linear), rtol=1e-12)


def test_huge_and_tiny_weights_lose_tightness_not_soundness() -> None:
    net = random_chain(3, 6, 6, 1)
    usual = whole_constant(net)
    for scale in (1e-100, 1e-30, 1e30, 1e100):
        scaled = chain(net.weights[0].weight * scale, net.weights[1].weight / scale, net.last.weight)
        assert whole_constant(scaled) >= usual * (1 - 1e-4)
    wide = chain(net.weights[0].weight * 1e30, net.weights[1].weight / 1e30, net.last.weight)
    assert whole_constant(wide) == pytest.approx(usual, rel=1e-3)


def test_folded_layers_count_with_their_rounding() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = module(4, 6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.body((x - 0.5) / 0.3)  # type: ignore[no-any-return]

    plain, scaled = classifier(4, 6, 2), Classifier(Scaled().eval(), (4,), 2)
    expected = table(Eclipse(), plain) / torch.tensor(0.3, dtype=torch.float64)
    assert torch.allclose(table(Eclipse(), scaled), expected, rtol=1e-9)
    read = DenseChain.of(relu_network(scaled), 100).weights[0]
    assert read.entry_roundings > 0
    assert DenseChain.of(relu_network(plain), 100).weights[0].entry_roundings == 0


def test_outputs_of_regressors_get_multipliers_of_their_own() -> None:
    net = Regressor(module(6, 12, 12, 3), (6,), 3)
    shared, own = table(LipSDP(multipliers="shared"), net), table(LipSDP(), net)
    assert (own[:-1, -1] < 0.999 * shared[:-1, -1]).all()
    assert (own >= steepest(net, L2)).all()


def test_convolutions_become_matrices() -> None:
    parts = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
    net = Classifier(parts, (1, 4, 4), 3)
    least = steepest(net, L2)
    for certifier in ALL:
        constants = table(certifier, net)
        assert (constants >= least).all()
        assert (constants <= table(LayerwiseLipschitz(rule="pairwise"), net) * (1 + 1e-9)).all()


def test_radii_grow_with_the_method() -> None:
    net = classifier(6, 12, 10, 3)
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    radii = [certify(one, net, x, L2).radius for one in (LayerwiseLipschitz(rule="pairwise"), Eclipse(), LipSDP())]
    assert (radii[0] <= radii[1] * (1 + 1e-6)).all()
    assert (radii[1] < radii[2]).all()


def test_what_is_refused() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(x)) + x)  # type: ignore[no-any-return]

    for certifier in ALL:
        with pytest.raises(UnsupportedError, match="skip"):
            certifier.prepare(Classifier(Skip().eval(), (3,), 2), L2)
    with pytest.raises(UnsupportedError, match="2500 is the limit"):
        LipSDP().prepare(classifier(2, 2, 2499, 2), L2)
    with pytest.raises(UnsupportedError, match="solver: gradient"):
        LipSDP().prepare(classifier(2, 800, 800, 2), L2)
    for options in ({"solver": "mosek"}, {"form": "edge"}, {"multipliers": "all"}, {"iterations": -1}):
        with pytest.raises(ConfigError):
            LipSDP(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", ["scs", "clarabel"])
def test_solvers_of_cvxpys_are_refused_what_is_too_large(solvers: None, solver: str) -> None:
    with pytest.raises(UnsupportedError, match=f"limit for {solver}"):
        LipSDP(solver=solver).prepare(classifier(2, 200, 200, 2), L2)


@pytest.mark.slow
def test_all_pairs_of_a_classifier_of_the_zoo() -> None:
    net = zoo.load("mlp-plain")
    shared, adam, pairs = (
        table(certifier, net) for certifier in (LipSDP(multipliers="shared"), LipSDP(solver="gradient"), LipSDP())
    )
    assert (steepest(net, L2, 200) <= pairs).all()
    inner = pairs[:-1, :-1]
    assert inner.sum() < adam[:-1, :-1].sum() < shared[:-1, :-1].sum()
