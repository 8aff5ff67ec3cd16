"""Branch and bound on functions other than ReLUs: what its leaves claim, and radii that are known exactly."""

import itertools
import math
import time
from collections.abc import Callable

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

import certbench
from certbench import L1, L2, Classifier, Linf, Outcome, ThreatModel
from certbench.attacks.frank_wolfe import Closest
from certbench.core.ball import steepest
from certbench.core.margins import margin_rows
from certbench.verifiers.bounds.optimise import Choice, evaluate, neurons, optimise, widths
from certbench.verifiers.bounds.region import Region
from certbench.verifiers.complete.branch_and_bound import BranchAndBound
from certbench.verifiers.complete.leaves import Leaf
from certbench.verifiers.complete.tree import Tree, TreeOptions

pytestmark = pytest.mark.machine


class Gate(nn.Module):
    """The product of each entry and a sigmoid of another one."""

    def forward(self, z: Tensor) -> Tensor:
        return z * torch.sigmoid(z.flip(-1))


KINDS: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "GELU": nn.GELU, "product": Gate}


def random(kind: Callable[[], nn.Module], sizes: tuple[int, ...], seed: int, gain: float = 3.0) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = [part for sides in itertools.pairwise(sizes) for part in (nn.Linear(*sides), kind())]
    with torch.no_grad():
        for parameter in (parameter for part in parts for parameter in part.parameters()):
            parameter.mul_(gain)
    return Classifier(nn.Sequential(*parts[:-1]).double().eval(), (sizes[0],), sizes[-1])


def points(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inside(region: Region, n: int) -> Tensor:
    """Return n points of each ball."""
    generator = torch.Generator().manual_seed(9)
    noise = torch.randn(len(region), n, region.x.shape[1], generator=generator, dtype=torch.float64)
    vertex = steepest(noise, region.threat, region.x, region.eps)
    share = torch.rand(len(region), n, 1, generator=generator, dtype=torch.float64)
    return region.x[:, None] + share * vertex + (1 - share) * vertex.roll(1, dims=1)


def grown(classifier: Classifier, x: Tensor, threat: ThreatModel, splits: int, eps: float | None = None) -> Tree:
    """Return a tree with about so many splits, whatever the time."""
    state = BranchAndBound().prepare(classifier, threat)
    label = int(state.classifier(x).argmax())
    found = Closest(state.classifier, threat, x, label)
    options = TreeOptions(8, 3, 2, 1e-6, eps)
    rows = margin_rows(torch.tensor([label]), classifier.num_classes)[0]
    tree = Tree(options, state, state.network.to(torch.float32), rows, 1e-9, 1.0, found, math.inf)
    bound = tree.bound

    def counted(leaves: list[Leaf], iterations: int) -> None:
        bound(leaves, iterations)
        if tree.splits >= splits:
            tree.deadline = time.perf_counter() - 1

    tree.bound = counted  # type: ignore[method-assign]
    tree.grow()
    return tree


PAIRS = [("tanh", L2.within(-2, 3)), ("GELU", Linf.within(-2, 3)), ("product", L1)]


@pytest.mark.parametrize(("kind", "threat"), PAIRS, ids=str)
def test_leaves_cover_the_ball_and_what_they_claim_holds(kind: str, threat: ThreatModel) -> None:
    """Every point satisfies the cuts of a leaf of each class; there all bounds hold, and margins within the radius."""
    classifier, x = random(KINDS[kind], (3, 4, 4, 3), 1), points(1, 3, 2)
    tree = grown(classifier, x, threat, 8)
    assert tree.splits >= 8
    sample = inside(tree.region(1), 3000)[0]
    *z, logits = tree.network.preactivations(sample)
    whole, length = torch.cat(z, dim=1), torch.linalg.vector_norm(sample - x, ord=threat.p, dim=1)
    for row in range(len(tree.rows)):
        covered = torch.zeros(len(sample), dtype=torch.bool)
        for leaf in (leaf for leaf in tree.leaves if leaf.row == row):
            member = (leaf.signs * (whole[:, leaf.neurons] - leaf.points) >= 0).all(dim=1)
            covered |= member
            if leaf.ends is not None and leaf.reach >= tree.eps:
                low, high = leaf.ends
                assert (whole[member] >= low - 1e-9).all() and (whole[member] <= high + 1e-9).all()
            claimed = member & (length < leaf.radius)
            assert (logits[claimed] @ tree.rows[row] > 0).all()
        assert covered.all()


@pytest.mark.parametrize(("kind", "threat"), PAIRS, ids=str)
def test_no_lines_and_multipliers_exceed_the_network_inside_a_leaf(kind: str, threat: ThreatModel) -> None:
    classifier, x = random(KINDS[kind], (3, 5, 5, 3), 2), points(1, 3, 3)
    tree = grown(classifier, x, threat, 8)
    leaves = [leaf for leaf in tree.leaves if len(leaf.neurons)][:10]
    region, bounds, start, split, rows, _ = tree.assemble(leaves, anew=True)
    generator = torch.Generator().manual_seed(0)
    sizes = (sum(widths(tree.network, bounds)), sum(neurons(bounds)))
    garbage = [3 * torch.randn(len(leaves), 1, size, generator=generator, dtype=torch.float64) for size in sizes]
    sample = inside(region, 3000)
    *z, logits = (part.view(len(leaves), 3000, -1) for part in tree.network.preactivations(sample.flatten(0, 1)))
    whole, seen = torch.cat(z, dim=2), 0
    true = (logits * rows).sum(dim=2)
    for made in (
        evaluate(tree.network, region, bounds, rows, Choice(garbage[0], garbage[1])),
        optimise(tree.network, region, bounds, rows, splits=split, start=start, iterations=4),
    ):
        value = ((sample - region.x[:, None]) * made.a).sum(dim=2) + made.centre
        for i, leaf in enumerate(leaves):
            member = (leaf.signs * (whole[i][:, leaf.neurons] - leaf.points) >= 0).all(dim=1)
            assert (value[i] <= true[i] + 1e-9 * (1 + true[i].abs()))[member].all()
            seen += int(member.sum())
        assert (made.lower <= value + 1e-9 * (1 + value.abs())).all()
    assert seen > 300


def closest_root(classifier: Classifier, x: float, low: float, high: float) -> float:
    """Return the distance of the closest change of the class on a line."""
    grid = torch.linspace(low, high, 200_001, dtype=torch.float64)

    def difference(t: Tensor) -> Tensor:
        logits = classifier(t[:, None])
        return logits[:, 0] - logits[:, 1]

    values = difference(grid)
    roots = [
        brentq(lambda t: float(difference(torch.tensor([t], dtype=torch.float64))), grid[i], grid[i + 1], xtol=1e-15)
        for i in (values[1:] * values[:-1] <= 0).nonzero().flatten().tolist()
    ]
    return min(abs(root - x) for root in roots)


@pytest.mark.parametrize(("kind", "seed"), [(nn.Tanh, 0), (nn.ELU, 1)])
def test_on_a_line_the_radius_is_the_distance_of_the_closest_root(kind: Callable[[], nn.Module], seed: int) -> None:
    classifier, x = random(kind, (1, 5, 5, 2), seed, 4.0), torch.tensor([[0.3]], dtype=torch.float64)
    exact = closest_root(classifier, 0.3, -1.7, 2.3)
    certificate = certbench.certify(BranchAndBound(seconds=120), classifier, x, Linf.within(-1.7, 2.3))
    assert certificate.outcome == (Outcome.COMPLETED,) and certificate.evidence[0]["splits"] > 0
    assert exact * (1 - 1e-6) <= float(certificate.radius) <= exact * (1 + 1e-9)


@pytest.mark.parametrize("threat", [L1, L2], ids=str)
def test_a_chain_of_monotone_neurons_has_the_radius_of_its_border(threat: ThreatModel) -> None:
    """The first neuron decides: the class changes where it falls to what it is at the border."""
    first, second, third, last = nn.Linear(3, 1), nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 2)
    chain = nn.Sequential(first, nn.Softplus(), second, nn.Tanh(), third, nn.Sigmoid()).double()
    with torch.no_grad():
        for layer, weight in ((first, [1.5, -0.5, 2.0]), (second, [1.2]), (third, [2.0])):
            layer.weight.copy_(torch.tensor([weight]))
            layer.bias.fill_(0.1)
        last.double().weight.copy_(torch.tensor([[0.0], [1.0]]))
        last.bias.zero_()
        x = torch.full((1, 3), 0.3, dtype=torch.float64)
        last.bias[0] = chain(x - 0.37 * first.weight.sign())[0, 0]
    exact = 0.37 * float(first.weight.detach().abs().sum()) / float(first.weight.detach().norm(threat.q))
    classifier = Classifier(nn.Sequential(*chain, last).eval(), (3,), 2)
    certificate = certbench.certify(BranchAndBound(seconds=120), classifier, x, threat)
    assert certificate.outcome == (Outcome.COMPLETED,)
    assert exact * (1 - 1e-6) <= float(certificate.radius) <= exact * (1 + 1e-9)


@pytest.mark.parametrize("kind", ["GELU", "product"])
def test_what_is_stopped_early_is_no_less_than_crown_and_no_attack_contradicts(kind: str) -> None:
    classifier, x = random(KINDS[kind], (4, 6, 6, 3), 3), points(2, 4, 1)
    crown = certbench.certify("crown", classifier, x, L2)
    early = certbench.certify(BranchAndBound(seconds=0.5, iterations=3), classifier, x, L2, attack=True)
    assert (early.radius >= crown.radius * (1 - 1e-9)).all() and (early.radius <= early.upper).all()
    for outcome, evidence in zip(early.outcome, early.evidence, strict=True):
        assert (outcome == Outcome.COMPLETED) == (evidence["open"] == 0)


def test_piecewise_linear_networks_are_split_at_zero_as_before() -> None:
    for kind in (nn.ReLU, nn.LeakyReLU, nn.Hardtanh):
        state = BranchAndBound().prepare(random(kind, (3, 4, 3), 0), Linf)
        assert state.network.activations == ()
