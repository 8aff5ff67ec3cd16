"""Orders of radii that certifiers claim (`Certifier.dominates`): a search for counterexamples, and those that had some.

The proofs stand with the certifiers. Networks here are small and many: narrow and wide last layers, many classes, rows
that are parallel, equal, opposite, orthogonal or sparse, convolutions with strides and padding, pooling, two affine
layers in a row, weights from tiny to large.
"""

import math
import random
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

import certbench
from certbench import Bisection, Classifier, Ladder, Linf, RadiusSearch, Secant, ThreatModel
from certbench.core import options
from certbench.verifiers.best_of import BestOf
from certbench.verifiers.linear.crown import AlphaCrown, Crown
from certbench.verifiers.lipschitz.margin import LayerwiseLipschitz

ROUNDING = 1e-6
RULES = ("best", "pairwise", "absolute", "tsuzuku", "centred", "naive")
SEARCHES: tuple[RadiusSearch, ...] = (
    Secant(), Secant(relative=0.2), Secant(limit=0.05), Secant(evaluations=1), Bisection(relative=0.3),
    Bisection(evaluations=4), Ladder((0.01, 0.1)),
)  # fmt: skip


def weights(rng: random.Random, generator: torch.Generator, shape: torch.Size) -> Tensor:
    kind = rng.choice(("normal", "parallel", "equal", "orthogonal", "sparse", "signs"))
    rows = torch.randn(shape, generator=generator, dtype=torch.float64).flatten(1)
    if kind == "parallel":
        rows = rows[:1] + 0.05 * rows
    elif kind == "equal":
        rows = rows[:1].repeat(len(rows), 1)
        rows[0] *= -1
    elif kind == "orthogonal" and len(rows) <= rows.shape[1]:
        rows = torch.linalg.qr(rows.T).Q.T
    elif kind == "sparse":
        rows = rows * (torch.rand(rows.shape, generator=generator) < 0.2)
    elif kind == "signs":
        rows = rows.sign()
    return 10 ** rng.uniform(-3, 2) * rows.reshape(shape) / math.sqrt(rows.shape[1])


def drawn(rng: random.Random, classes: int, *, relu: bool, widest: int = 32) -> tuple[Classifier, Float[Tensor, "..."]]:
    """A random network, and six inputs."""
    generator = torch.Generator().manual_seed(rng.randrange(2**32))
    kinds = [nn.ReLU] if relu else [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU]
    layers: list[nn.Module] = []
    if rng.random() < 0.5:
        side = rng.choice((4, 5, 6))
        shape: tuple[int, ...] = (rng.choice((1, 2, 3)), side, side)
        kernel, stride, padding = rng.choice((1, 2, 3)), rng.choice((1, 2)), rng.choice((0, 1))
        layers += [nn.Conv2d(shape[0], rng.choice((1, 2, 4)), kernel, stride, padding), rng.choice(kinds)()]
        if not relu and stride == 1 and rng.random() < 0.5:
            layers += [rng.choice((nn.MaxPool2d, nn.AvgPool2d))(2)]
        layers += [nn.Flatten()]
        size = nn.Sequential(*layers)(torch.zeros(1, *shape)).shape[1]
    else:
        size = rng.choice((1, 2, 6, 20))
        shape = (size,)
    for _ in range(rng.choice((0, 0, 1, 2))):
        width = rng.choice([w for w in (1, 3, 8, 32) if w <= widest])
        layers += [nn.Linear(size, width), rng.choice(kinds)()]
        size = width
    layers += [nn.Linear(size, classes)]
    if rng.random() < 0.2:
        layers += [nn.Linear(classes, classes)]
    module = nn.Sequential(*layers).double().eval().requires_grad_(False)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.copy_(weights(rng, generator, parameter.shape))
        else:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.rand(6, *shape, generator=generator, dtype=torch.float64)
    return Classifier(module, shape, classes, "drawn"), x


def asked(rng: random.Random) -> ThreatModel:
    return ThreatModel(rng.choice((1.0, 2.0, math.inf)), rng.choice((None, (0.0, 1.0), (-1.0, 2.0))))


MANY = pytest.param(30, marks=pytest.mark.slow)


@pytest.mark.parametrize("networks", [5, MANY])
@pytest.mark.parametrize("classes", [2, 3, 5, 10, 40, 150])
def test_no_network_was_found_on_which_a_lipschitz_rule_falls_short(classes: int, networks: int) -> None:
    rng, strict = random.Random(classes), set()
    for _ in range(networks):
        relu = rng.random() < 0.5
        safe = relu and rng.random() < 0.4
        classifier, x = drawn(rng, classes, relu=relu)
        threat = asked(rng)
        found = []
        for rule in RULES:
            state = LayerwiseLipschitz(rule, safe).prepare(classifier, threat)
            for search in (Secant(), rng.choice(SEARCHES)):
                certifier = LayerwiseLipschitz(rule, safe, search)
                # As the rows of a run: beyond the domain searches end anywhere, and the front door cuts them off there.
                found.append((certifier, certbench.certify(certifier, classifier, x, threat, state=state)))
        for great, better in found:
            for small, other in found:
                if great is not small and great.dominates(small):
                    for a, b, e in zip(better.radius.tolist(), other.radius.tolist(), better.evidence, strict=True):
                        most = great.attainable(a, e)
                        assert most >= b * (1 - ROUNDING), (great, small, threat)
                        if a > 1.01 * b > 0 and math.isfinite(most):
                            strict.add((great.rule, small.rule))
    assert strict, "no rule was better than another: nothing was tested"


def test_the_search_finds_counterexamples_where_there_are_some() -> None:
    rng, found = random.Random(1), set()
    for _ in range(20):
        classifier, x = drawn(rng, 10, relu=True, widest=8)
        naive, tsuzuku = (
            certbench.certify(LayerwiseLipschitz(rule), classifier, x, certbench.L2).radius
            for rule in ("naive", "tsuzuku")
        )
        found |= {"naive"} if bool((naive > 1.01 * tsuzuku).any()) else set()
        found |= {"tsuzuku"} if bool((tsuzuku > 1.01 * naive).any()) else set()
    assert found == {"naive", "tsuzuku"}


def test_naive_and_tsuzuku_are_in_no_order() -> None:
    """Equal rows and orthogonal ones reach the bounds; the audit once took naive <= tsuzuku for a theorem."""
    naive, tsuzuku = LayerwiseLipschitz("naive"), LayerwiseLipschitz("tsuzuku")
    assert naive.dominates(tsuzuku) is None and tsuzuku.dominates(naive) is None
    ratios = []
    for rows in (torch.full((50, 50), 1 / math.sqrt(50)).double(), torch.eye(50, dtype=torch.float64)):
        layer = nn.Linear(50, 50).double().requires_grad_(False)
        layer.weight.copy_(rows)
        layer.bias.copy_(-torch.arange(50.0))
        classifier = Classifier(nn.Sequential(layer).eval(), (50,), 50, "rows")
        radius = [
            certbench.certify(rule, classifier, torch.zeros(1, 50), certbench.L2).radius for rule in (naive, tsuzuku)
        ]
        ratios.append(float(radius[0] / radius[1]))
    assert ratios == pytest.approx([5.0, 1 / math.sqrt(2)], rel=2e-3)


@pytest.mark.parametrize("networks", [5, MANY])
@pytest.mark.parametrize("first", ["lipschitz", "crown", "deepz", "best-of"])
def test_no_network_was_found_on_which_the_best_falls_short_of_its_first(first: str, networks: int) -> None:
    rng = random.Random(first)
    for _ in range(networks):
        classifier, x = drawn(rng, rng.choice((2, 3, 5)), relu=True, widest=8)
        threat = asked(rng)
        member = options.build({"name": first, **({"of": ["lipschitz"]} if first == "best-of" else {})})
        great = BestOf((member, LayerwiseLipschitz("naive"), Crown()), relative=rng.choice((1e-3, 0.3)))
        assert great.dominates(member)
        best, alone = (certbench.certify(one, classifier, x, threat) for one in (great, member))
        for a, b, evidence in zip(best.radius.tolist(), alone.radius.tolist(), best.evidence, strict=True):
            assert great.attainable(a, evidence) >= b * (1 - ROUNDING)
            assert a >= b * (1 - ROUNDING), "of its first, `relative` takes nothing away"


def window() -> tuple[Classifier, Float[Tensor, "1 1"], ThreatModel]:
    """A network on which CROWN's bounds fail at radii from 0.2 to 0.4, and hold from there to 0.714, which is exact.

    y = relu(x - 0.3) - x + 0.4 is at least 0.1 for x in [0, 1], the input is 0.2. Between 0.2 and 0.4 the ball reaches
    further above the kink than below it, up to 0.4, so that CROWN takes the slope 0 there, by which y may be negative;
    beyond 0.4 it takes 1, by which it is not. The logit loses 10,000 times as much as the relaxation of relu(y) - y.
    """
    steep = 1e4
    first, second, last = nn.Linear(1, 2).double(), nn.Linear(2, 3).double(), nn.Linear(3, 2).double()
    values: list[tuple[nn.Linear, Any, Any]] = [
        (first, [[1], [1]], [-0.3, 0]),
        (second, [[1, -1], [1, 0], [0, 1]], [0.4, 0, 0]),
        (last, [[-steep, steep, -steep - 0.07], [0, 0, 0]], [0.064 + 0.4 * steep, 0]),
    ]
    for layer, weight, bias in values:
        layer.weight.data = torch.tensor(weight, dtype=torch.float64)
        layer.bias.data = torch.tensor(bias, dtype=torch.float64)
    module = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last).eval().requires_grad_(False)
    return Classifier(module, (1,), 2, "window"), torch.full((1, 1), 0.2, dtype=torch.float64), Linf.within(0, 1)


@pytest.mark.parametrize("name", ["alpha-crown", "lp"])
@pytest.mark.usefixtures("solvers")
def test_better_slopes_may_give_smaller_radii(name: str) -> None:
    """Over each ball they give better bounds; but these do not fall as balls grow, and searches look elsewhere."""
    classifier, x, threat = window()
    exact = float(certbench.certify("branch-and-bound", classifier, x, threat).radius)
    crown = float(certbench.certify("crown", classifier, x, threat).radius)
    better = options.build({"name": name, "search": {"name": "bisection", "start": 0.3}})
    assert float(certbench.certify(better, classifier, x, threat).radius) < 0.3 < 0.7 < crown <= exact * (1 + 1e-6)
    assert better.dominates(Crown()) is None
    for eps in (0.1, 0.25, 0.35, 0.5):
        bounds = [float(certbench.margins(one, classifier, x, threat, eps).min()) for one in (name, "crown")]
        assert bounds[0] >= bounds[1] - 1e-9 * 1e4
        assert (bounds[1] > 0) == (eps not in (0.25, 0.35))


def test_the_best_of_several_may_fall_short_of_a_later_one() -> None:
    """It asks the later one whether it proves more at a ball just above the first radius; a larger ball may do."""
    classifier, x, threat = window()
    first, later = Crown(search=Secant(limit=0.1999)), Crown()
    best = BestOf((first, later))
    assert best.dominates(first) and best.dominates(later) is None
    assert float(certbench.certify(best, classifier, x, threat).radius) == 0.1999
    assert float(certbench.certify(later, classifier, x, threat).radius) > 0.7


def test_what_an_optimiser_or_another_question_gives_is_in_no_order() -> None:
    assert BestOf((AlphaCrown(),)).dominates(AlphaCrown()) is None
    assert BestOf((Crown(),)).dominates(Crown(rounding_safe=True)) is None
    assert LayerwiseLipschitz("best", True).dominates(LayerwiseLipschitz("naive")) is None
    assert LayerwiseLipschitz("pairwise").dominates(LayerwiseLipschitz("absolute")) is None
    assert LayerwiseLipschitz("absolute").dominates(LayerwiseLipschitz("naive")) is None


def test_where_a_search_ended_early_nothing_is_promised() -> None:
    for search in (Secant(), Bisection()):
        assert search.attainable(1.0, 5) == pytest.approx(1.001, rel=1e-5)
        assert search.attainable(1e4, 5) == search.attainable(1.0, 60) == math.inf
    assert Ladder((0.1,)).attainable(0.1, 1) == math.inf
    assert BestOf((Crown(),), relative=0.5).attainable(1.0, {}) == 1.5
    assert BestOf((Crown(),)).attainable(1.0, {"refused": {"crown": "time"}}) == math.inf
