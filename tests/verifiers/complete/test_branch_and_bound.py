"""Branch and bound against brute force over all activation patterns, and the soundness of its linear bounds."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import certbench
from certbench import L1, L2, Classifier, ConfigError, Linf, Outcome, ThreatModel
from certbench.attacks.frank_wolfe import Closest
from certbench.core.ball import steepest
from certbench.core.margins import margin_rows
from certbench.testing import inputs, network
from certbench.verifiers.bounds.backward import backward, layer_bounds
from certbench.verifiers.bounds.optimise import Choice, evaluate, flat, optimise
from certbench.verifiers.bounds.region import LayerBounds, Region
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.complete.branch_and_bound import BranchAndBound
from certbench.verifiers.complete.leaves import Leaf
from certbench.verifiers.complete.tree import Tree, TreeOptions
from tests.support.towers import SHAPES, towers

pytestmark = pytest.mark.machine

NORMS = [L1, L2, Linf, L1.within(0, 1), L2.within(0, 1), Linf.within(0, 1)]


def tiny(seed: int, sizes: tuple[int, ...] = (3, 4, 4, 3)) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            parts += [nn.Linear(before, after), nn.ReLU()]
        module = nn.Sequential(*parts[:-1])
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn_like(parameter) * (1.0 if parameter.dim() > 1 else 0.3))
    return Classifier(module.eval(), (sizes[0],), sizes[-1], f"tiny {seed}")


def convolutional() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = nn.Sequential(
            nn.Conv2d(1, 2, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3, 3)
        )
    return Classifier(module.eval(), (1, 4, 4), 3, "conv")


def points(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(classifier: Classifier, x: Tensor, threat: ThreatModel) -> float:
    """The closest point of another class, by a linear program (Linf, L1) for every activation pattern and class."""
    layers = [part for part in classifier.double().module if isinstance(part, nn.Linear)]  # type: ignore[union-attr]
    weights = [(layer.weight.numpy(), layer.bias.numpy()) for layer in layers]
    label, origin, d = int(classifier.double()(x[None]).argmax()), x.numpy(), len(x)
    best = math.inf
    for pattern in itertools.product((0, 1), repeat=sum(len(b) for _, b in weights[:-1])):
        slope, value, left, right = np.eye(d), np.zeros(d), [], []
        rest = np.array(pattern)
        for weight, bias in weights[:-1]:
            slope, value = weight @ slope, weight @ value + bias
            on, rest = rest[: len(bias)], rest[len(bias) :]
            left.append((1 - 2 * on)[:, None] * slope)
            right.append((2 * on - 1) * value)
            slope, value = on[:, None] * slope, on * value
        slope, value = weights[-1][0] @ slope, weights[-1][0] @ value + weights[-1][1]
        for other in range(len(value)):
            if other == label:
                continue
            rows = np.vstack([*left, (slope[label] - slope[other])[None]])
            limits = np.concatenate([*right, [value[other] - value[label]]])
            eye = np.eye(d)  # columns: the point, then |change| (L1) or the radius (Linf)
            size = eye if threat.p == 1 else np.ones((d, 1))
            zeros = np.zeros((len(rows), size.shape[1]))
            matrix = np.block([[rows, zeros], [eye, -size], [-eye, -size]])
            low, high = threat.domain or (None, None)
            found = linprog(
                np.concatenate([np.zeros(d), np.ones(size.shape[1])]),
                matrix,
                np.concatenate([limits, origin, -origin]),
                bounds=[(low, high)] * d + [(0, None)] * size.shape[1],
            )
            if found.status == 0:
                best = min(best, found.fun)
    return best


@pytest.mark.parametrize("threat", [Linf, L1, Linf.within(0, 1), L1.within(0, 1)], ids=str)
def test_radii_equal_brute_force(threat: ThreatModel) -> None:
    classifier, x = tiny(1, (3, 3, 3, 3)), points(2, 3, 1)
    exact = torch.tensor([brute_force(classifier, row, threat) for row in x], dtype=torch.float64)
    certificate = certbench.certify(BranchAndBound(iterations=5, seconds=60), classifier, x, threat)
    known = exact.isfinite()
    assert set(certificate.outcome) == {Outcome.COMPLETED}
    torch.testing.assert_close(certificate.radius[known], exact[known], rtol=1e-5, atol=1e-9)
    assert (certificate.upper[known] >= exact[known] * (1 - 1e-9)).all()
    assert certificate.upper[~known].isinf().all()


@pytest.mark.parametrize("threat", [L2, L2.within(-1, 2)], ids=str)
def test_l2_radii_agree_with_a_dense_sample(threat: ThreatModel) -> None:
    classifier, x = tiny(2, (2, 5, 5, 3)), points(2, 2, 3)
    certificate = certbench.certify(BranchAndBound(iterations=5, seconds=60, relative=1e-5), classifier, x, threat)
    grid = torch.cartesian_prod(*[torch.linspace(-1, 2, 751, dtype=torch.float64)] * 2)
    label = classifier.double()(grid).argmax(dim=1)
    for i in range(len(x)):
        closest = (grid - x[i]).norm(dim=1)[label != certificate.prediction[i]].min()
        assert certificate.radius[i] <= closest
        if closest < 0.9:  # then the grid is fine enough, and wide enough without a domain
            assert certificate.radius[i] >= closest - 2 * 0.004
    assert set(certificate.outcome) == {Outcome.COMPLETED}
    assert (certificate.radius >= certificate.upper.clamp(max=1e4) * (1 - 1.1e-5)).all()


@pytest.mark.parametrize("seed", range(len(SHAPES)))
def test_towers_side_by_side_have_the_radii_of_mixed_integer_programs(seed: int) -> None:
    pytest.importorskip("highspy")
    classifier, x = towers(SHAPES[seed], seed, width=3), points(2, 3, seed)
    exact = certbench.certify("milp", classifier, x, Linf)
    certificate = certbench.certify(BranchAndBound(iterations=5, seconds=60), classifier, x, Linf)
    assert set(exact.outcome) == set(certificate.outcome) == {Outcome.COMPLETED}
    assert (certificate.radius <= exact.upper * (1 + 1e-9)).all()
    assert (exact.radius <= certificate.upper * (1 + 1e-9)).all()
    torch.testing.assert_close(certificate.radius, exact.radius, rtol=2e-4, atol=0)


def test_a_convolution_and_no_hidden_layer() -> None:
    x = points(2, 16).view(2, 1, 4, 4)
    certificate = certbench.certify(BranchAndBound(iterations=5, seconds=60, relative=1e-5), convolutional(), x, Linf)
    assert set(certificate.outcome) == {Outcome.COMPLETED}
    linear = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval(), (1, 4, 4), 3)
    certificate = certbench.certify(BranchAndBound(iterations=5, seconds=60), linear, x, L2)
    assert (certificate.upper - certificate.radius <= 1e-6 * certificate.upper).all()


@pytest.mark.parametrize("threat", [L1, L2, Linf.within(0, 1)], ids=str)
def test_what_is_stopped_early_contains_the_truth(threat: ThreatModel) -> None:
    classifier, x = tiny(4, (4, 8, 8, 3)), points(2, 4, 5)
    exact = certbench.certify(BranchAndBound(iterations=5, seconds=60), classifier, x, threat)
    assert set(exact.outcome) == {Outcome.COMPLETED}
    early = certbench.certify(BranchAndBound(seconds=1e-3, iterations=1, domains=2), classifier, x, threat)
    assert (early.radius <= exact.upper).all()
    assert (early.upper >= exact.radius).all()
    assert Outcome.TIMED_OUT in early.outcome


@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_one_radius_is_decided_both_ways(threat: ThreatModel) -> None:
    classifier, x = tiny(4, (4, 8, 8, 3)), points(1, 4, 5)
    exact = float(certbench.certify(BranchAndBound(iterations=5, seconds=60), classifier, x, threat).radius)
    for factor in (0.9, 0.99, 1.01):
        decided = certbench.certify(BranchAndBound(iterations=5, seconds=60, eps=factor * exact), classifier, x, threat)
        assert decided.outcome == (Outcome.COMPLETED,)
        assert (float(decided.radius) == factor * exact) == (factor < 1)
        assert (float(decided.upper) <= factor * exact) == (factor > 1)


@pytest.mark.parametrize("threat", [L1, L2, Linf])
def test_a_domain_without_an_end_is_searched_up_to_the_limit(threat: ThreatModel) -> None:
    x, certifier = points(1, 3), BranchAndBound(iterations=5)
    plain = certbench.certify(certifier, tiny(0), x, threat)
    assert plain.radius.min() > 0
    open_ended = certbench.certify(certifier, tiny(0), x, threat.within(-math.inf, math.inf))
    assert torch.allclose(open_ended.radius, plain.radius, rtol=1e-4, atol=0)
    level = nn.Linear(3, 2)
    with torch.no_grad():
        level.weight.zero_()
        level.bias.copy_(torch.tensor([1.0, 0.0]))
    found = certbench.certify(certifier, Classifier(level.eval(), (3,), 2), x, threat.within(-math.inf, 1))
    assert found.outcome == (Outcome.LIMITED,) and found.radius.isfinite().all()


def test_neighbours_do_not_matter() -> None:
    classifier, x = tiny(4, (4, 8, 8, 3)), points(3, 4, 6)
    certifier = BranchAndBound(iterations=5, seconds=60)
    whole = certbench.certify(certifier, classifier, x, Linf)
    single = certbench.certify(certifier, classifier, x[[2, 0]], Linf, batch_size=1)
    assert torch.equal(whole.radius[[2, 0]], single.radius)
    assert whole.evidence[2] == single.evidence[0]


def domains(state: NetworkState, region: Region, seed: int) -> tuple[LayerBounds, Tensor]:
    """Bounds of each ball with some unstable neurons split at random, and which ones."""
    bounds = layer_bounds(state.network, region)
    low, high = (end.clone() for end in flat(bounds))
    generator = torch.Generator().manual_seed(seed)
    split = (torch.rand(low.shape, generator=generator) < 0.4) & (low < 0) & (high > 0)
    positive = torch.rand(low.shape, generator=generator) < 0.5
    low, high = torch.where(split & positive, 0.0, low), torch.where(split & ~positive, 0.0, high)
    sizes = [end.shape[1] for end in bounds.lower]
    return LayerBounds(torch.split(low, sizes, dim=1), torch.split(high, sizes, dim=1), bounds.method), split


def inside(state: NetworkState, region: Region, bounds: LayerBounds, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and positions of n points of each ball, and which of them lie in its domain."""
    generator = torch.Generator().manual_seed(9)
    noise = torch.randn(len(region), n, region.x.shape[1], generator=generator, dtype=torch.float64)
    vertex = steepest(noise, region.threat, region.x, region.eps)
    share = torch.rand(len(region), n, 1, generator=generator, dtype=torch.float64)
    x = region.x[:, None] + share * vertex + (1 - share) * vertex.roll(1, dims=1)
    *z, logits = (part.view(len(region), n, -1) for part in state.network.preactivations(x.flatten(0, 1)))
    low, high = flat(bounds)
    whole = torch.cat(z, dim=2)
    return logits, x, ((whole >= low[:, None] - 1e-12) & (whole <= high[:, None] + 1e-12)).all(dim=2)


@pytest.mark.parametrize("threat", NORMS, ids=str)
def test_no_choice_of_slopes_and_multipliers_exceeds_the_network_inside_the_domain(threat: ThreatModel) -> None:
    seen = 0
    for seed in range(6):
        state = NetworkState.of(tiny(seed, (3, 8, 8, 3)), threat)
        eps = torch.linspace(0.05, 0.4, 8, dtype=torch.float64)
        region = Region(threat, points(8, 3, seed), eps)
        bounds, split = domains(state, region, seed)
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(8, 2, 3, generator=generator, dtype=torch.float64)
        logits, x, member = inside(state, region, bounds, 200)
        garbage = torch.randn(2, 8, 2, 16, generator=generator, dtype=torch.float64) * 3
        made = [
            evaluate(state.network, region, bounds, rows, Choice(garbage[0], garbage[1])),
            optimise(state.network, region, bounds, rows, splits=split, iterations=5),
        ]
        true = torch.einsum("npc,nkc->npk", logits, rows)
        for linear in made:
            value = torch.einsum("nkd,npd->npk", linear.a, x - region.x[:, None]) + linear.centre[:, None]
            assert (value <= true + 1e-9)[member].all()
            assert (linear.lower[:, None] <= value + 1e-9).all()
        seen += int(member.sum())
    assert seen > 500


@pytest.mark.parametrize("threat", NORMS, ids=str)
def test_optimised_bounds_rise_and_do_not_depend_on_the_batch(threat: ThreatModel) -> None:
    state = NetworkState.of(tiny(1, (3, 8, 8, 3)), threat)
    region = Region(threat, points(5, 3), torch.linspace(0.1, 0.5, 5, dtype=torch.float64))
    bounds, split = domains(state, region, 0)
    rows = torch.eye(3, dtype=torch.float64).expand(5, 3, 3)
    crown = backward(state.network, rows, 2, bounds)
    enough = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], dtype=torch.float64)
    whole = optimise(state.network, region, bounds, rows, splits=split, enough=enough)
    assert (whole.lower >= region.minimum(crown.a, crown.b) - 1e-6).all()
    assert (whole.lower > region.minimum(crown.a, crown.b) + 1e-3).any()
    for i in range(5):
        part = slice(i, i + 1)
        alone = optimise(state.network, region[part], bounds[part], rows[part], splits=split[part], enough=enough[part])
        torch.testing.assert_close(alone.lower, whole.lower[part], rtol=1e-6, atol=1e-6)


def test_nan_certifies_nothing() -> None:
    state = NetworkState.of(tiny(1), Linf)
    region = Region(Linf, points(1, 3), torch.tensor([0.1], dtype=torch.float64))
    bounds = layer_bounds(state.network, region)
    poisoned = LayerBounds(tuple(low * math.nan for low in bounds.lower), bounds.upper, "nan")
    rows = torch.eye(3, dtype=torch.float64)[None]
    assert not (optimise(state.network, region, poisoned, rows).lower > -math.inf).any()


@pytest.mark.parametrize(
    ("name", "value"), [("seconds", 0.0), ("domains", 0), ("iterations", 0), ("relative", 1.0), ("eps", 0.0)]
)
def test_bad_options_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError) as caught:
        BranchAndBound(**{name: value})
    assert caught.value.path == (name,)


@pytest.mark.slow
def test_a_published_network_is_decided(bundle: object) -> None:
    module, _ = bundle.network("sdp/mnist_cnn_a_adv")  # type: ignore[attr-defined]
    images, _ = bundle.dataset("mnist-sdp200")  # type: ignore[attr-defined]
    classifier = Classifier(module.eval(), (1, 28, 28), 10, "sdp")
    x = images[[0, 3, 5]].double()
    decided = certbench.certify(BranchAndBound(eps=0.3, seconds=60), classifier, x, Linf.within(0, 1))
    assert set(decided.outcome) == {Outcome.COMPLETED}
    assert decided.radius.tolist() == [0.3, 0.3, 0.0]


@pytest.mark.parametrize("threat", [L2, Linf.within(0, 1)], ids=str)
def test_without_time_the_radius_is_still_crowns(threat: ThreatModel) -> None:
    classifier, x = network("mlp"), inputs(3)
    crown = certbench.certify("crown", classifier, x, threat)
    hurried = certbench.certify(BranchAndBound(seconds=1e-9), classifier, x, threat)
    assert (hurried.radius >= crown.radius * (1 - 2e-3)).all()
    assert (crown.radius > 0).any()
    assert (hurried.radius <= hurried.upper).all()


@pytest.mark.parametrize("threat", [L1, L2, Linf, Linf.within(0, 1)], ids=str)
def test_signs_that_do_not_occur_in_a_ball_prove_nothing_beyond_it(threat: ThreatModel) -> None:
    """A neuron is on all over a small ball: that it is off has no point there, but it may have one farther out."""
    classifier, x = network("mlp"), inputs(1)
    state, label = NetworkState.of(classifier, threat), int(classifier(x).argmax())
    found = Closest(state.classifier, threat, x.flatten(1), label)
    rows = margin_rows(torch.tensor([label]), 4)[0]
    fast = state.network.to(torch.float32)
    tree = Tree(TreeOptions(64, 20, 4, 1e-6, 1e-3), state, fast, rows, 0.0, 1.0, found, math.inf)
    tree.choose_level()
    assert tree.bounds is not None
    stable = (flat(tree.bounds)[0][0] > 0).nonzero()[0]
    leaf = Leaf(0.0, 99, 0, stable, torch.tensor([-1]), torch.zeros(1))
    assert bool(tree.assemble([leaf])[-1].all()), "the leaf should be empty in this ball"
    tree.bound([leaf], 5)
    assert leaf.radius == tree.eps == 1e-3
