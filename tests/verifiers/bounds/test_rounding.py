"""Rounding errors: the a-priori bounds hold, and networks that live on rounding are not certified in safe mode."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import Classifier, Linf, NumericalError, UnsupportedError
from certbench.core.margins import margin_rows
from certbench.networks.reading import relu_network
from certbench.testing import inputs, network, sample_ball
from certbench.verifiers.bounds.backward import backward, layer_bounds
from certbench.verifiers.bounds.region import Region
from certbench.verifiers.bounds.rounding import bound_errors, evaluation_error

SAFE = {"name": "alpha-crown", "iterations": 3, "rounding_safe": True}
PLAIN = {"name": "alpha-crown", "iterations": 3}
ALL_SAFE = [
    SAFE,
    {"name": "crown", "rounding_safe": True},
    {"name": "lipschitz", "rounding_safe": True},
    {"name": "jacobian-zonotope", "rounding_safe": True},
    {"name": "fast-lip", "rounding_safe": True},
    {"name": "ibp", "rounding_safe": True},
]
every_safe = pytest.mark.parametrize("safe", ALL_SAFE, ids=lambda spec: str(spec["name"]))
pytestmark = [pytest.mark.machine, pytest.mark.usefixtures("lirpa")]


class Normalise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) / 1e-3


def normalised() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            Normalise(), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)
        )
    return Classifier(net.eval(), (1, 4, 4), 4, "normalised")


def zoo() -> list[Classifier]:
    return [*(network(kind) for kind in ("linear", "mlp", "cnn", "residual")), normalised()]


@pytest.mark.parametrize("classifier", zoo(), ids=lambda classifier: classifier.name)
def test_the_float_program_stays_within_its_error_bound(classifier: Classifier) -> None:
    net, x = relu_network(classifier), inputs(4)
    region = Region(Linf.within(0, 1), x.flatten(1), torch.tensor([1e-3, 0.05, 0.2, 1.0], dtype=torch.float64))
    error = evaluation_error(net, region, layer_bounds(net, region), torch.float32)
    points = sample_ball(x, region.eps, region.threat, 500).flatten(0, 1)
    off = (classifier(points.float()).double() - classifier.double()(points)).abs().view(4, -1, 4).amax(dim=1)
    assert (off <= error).all()
    assert (off > 0).any()
    assert (error < 1e4 * off.max()).all()


@pytest.mark.parametrize("classifier", zoo(), ids=lambda classifier: classifier.name)
def test_linear_bounds_stay_within_their_error_bound(classifier: Classifier) -> None:
    """In float32, where the errors are large enough to be seen from float64; the formula is the same."""
    net, x = relu_network(classifier), inputs(4)
    region = Region(Linf, x.flatten(1), torch.tensor([1e-3, 0.05, 0.2, 1.0], dtype=torch.float64))
    bounds = layer_bounds(net, region)
    rows = margin_rows(classifier(x).argmax(dim=1), 4)
    exact = backward(net, rows, len(net.hidden), bounds)
    small = Region(Linf, region.x.float(), region.eps.float())
    single = type(bounds)(tuple(b.float() for b in bounds.lower), tuple(b.float() for b in bounds.upper), "crown")
    rough = backward(net.to(torch.float32), rows.float(), len(net.hidden), single)
    off = (small.minimum(rough.a, rough.b).double() - region.minimum(exact.a, exact.b)).abs()
    allowed = (rows.abs() @ bound_errors(net, region, torch.float32)[-1][..., None]).squeeze(-1)
    assert (off <= allowed).all()
    assert (off > 0).any()


def test_safe_certificates_are_hardly_smaller_where_nothing_lives_on_rounding() -> None:
    classifier, x = network("mlp"), inputs(8)
    fine = {"search": {"name": "secant", "relative": 1e-6}}
    plain, safe = (certbench.certify({**spec, **fine}, classifier, x, Linf).radius for spec in (PLAIN, SAFE))
    assert (safe <= plain * (1 + 1e-6)).all()
    assert (safe > 0.99 * plain).all()


@every_safe
def test_an_input_that_the_float_program_classifies_otherwise_is_not_certified(safe: dict[str, Any]) -> None:
    """Jia and Rinard (2020): so close to the decision boundary that the float32 program is on its other side."""
    classifier = network("mlp")
    double = classifier.double()
    a, b = inputs(40)[:, None], inputs(40, seed=1)[None]
    a, b = a.expand(40, 40, 1, 4, 4).flatten(0, 1), b.expand(40, 40, 1, 4, 4).flatten(0, 1)
    differ = double(a).argmax(dim=1) != double(b).argmax(dim=1)
    a, b = a[differ], b[differ]
    for _ in range(60):  # the boundary between them, to the last float32
        middle = ((a + b) / 2).float().double()
        same = (double(middle).argmax(dim=1) == double(a).argmax(dim=1)).view(-1, 1, 1, 1)
        a, b = torch.where(same, middle, a), torch.where(same, b, middle)
    near = torch.cat([a, b])
    near = near[classifier(near.float()).argmax(dim=1) != double(near).argmax(dim=1)][:50]  # of some 400 in 1000
    assert len(near) > 0, "the construction failed: no input is on the other side"
    real, program = (certbench.certify(spec, classifier, near, Linf) for spec in (PLAIN, safe))
    assert (real.radius > 0).any()  # a claim about real arithmetic, and true there
    assert (program.radius == 0).all()
    assert real.evidence[0]["arithmetic"] == "real" and program.evidence[0]["arithmetic"] == "torch.float32"


class Hiding(nn.Module):
    """In real arithmetic the identity; in floating point large numbers swallow the input (Zombori et al., 2021)."""

    def __init__(self, large: float) -> None:
        super().__init__()
        self.large = large

    def forward(self, x: Tensor) -> Tensor:
        return x + self.large - self.large


@every_safe
@pytest.mark.parametrize("large", [2.0**26, 2.0**40, 2.0**60])
@pytest.mark.parametrize("deep", [False, True])
def test_a_network_that_hides_a_class_in_rounding_is_not_certified(
    large: float, deep: bool, safe: dict[str, Any]
) -> None:
    """The real network says class 0 around 1; the float32 program says class 1 everywhere."""
    first, last = nn.Linear(1, 1), nn.Linear(1, 2)
    with torch.no_grad():
        first.weight.fill_(1.0)
        first.bias.fill_(0.0)
        last.weight.copy_(torch.tensor([[1.0], [0.0]]))
        last.bias.copy_(torch.tensor([0.0, 0.3]))
    hidden: list[nn.Module] = [first, Hiding(large), nn.ReLU(), nn.Linear(1, 1), nn.ReLU()] if deep else [Hiding(large)]
    if deep:
        with torch.no_grad():
            hidden[3].weight.fill_(1.0)  # type: ignore[operator, union-attr]
            hidden[3].bias.fill_(0.0)  # type: ignore[operator, union-attr]
    classifier = Classifier(nn.Sequential(*hidden, last).eval(), (1,), 2)
    x = torch.ones(1, 1, dtype=torch.float64)
    assert classifier(x).argmax() == 1
    try:
        certificate = certbench.certify(safe, classifier, x, Linf)
    except certbench.UnsupportedError:  # even float64 finds that the module is not what it says
        return
    assert certificate.radius == 0


def test_precisions_without_an_error_bound_are_refused() -> None:
    classifier = network("mlp")
    half = Classifier(classifier.module.half(), (1, 4, 4), 4)
    with pytest.raises(NumericalError, match="float16"):
        certbench.certify(SAFE, half, inputs(1), Linf)


@every_safe
def test_what_cancels_inside_a_normalisation_is_counted(safe: dict[str, Any]) -> None:
    """Mean and bias of some 16,000 cancel in float32: the program's logit differs from the real one by 2e-4."""
    norm, last = nn.BatchNorm1d(2), nn.Linear(2, 2)
    module = nn.Sequential(norm, nn.ReLU(), last).eval().requires_grad_(False)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean[0], norm.running_var[0], norm.weight[0] = 15000.3, 0.7, 0.9
    norm.bias[0] = float(15000.3 * 0.9 / (0.7 + 1e-5) ** 0.5 + 1)
    x = torch.zeros(1, 2)
    single, double = norm(x)[0, 0].item(), copy.deepcopy(norm).double()(x.double())[0, 0].item()
    assert single != double
    last.weight.zero_()
    last.weight[0, 0], last.bias[0], last.bias[1] = 1.0, 0.0, (single + double) / 2
    classifier = Classifier(module, (2,), 2)
    assert certbench.certify(PLAIN, classifier, x, Linf).prediction != classifier(x).argmax(dim=1)
    assert certbench.certify(safe, classifier, x, Linf).radius == 0


class Computing(nn.Module):
    """Adds a constant that the program computes from its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.tensor(1111.1))
        self.register_buffer("b", torch.tensor(11.1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.a * self.b  # type: ignore[no-any-return, operator]


@every_safe
def test_constants_that_the_program_computes_are_refused(safe: dict[str, Any]) -> None:
    classifier = Classifier(nn.Sequential(Computing(), nn.Linear(2, 2)).eval(), (2,), 2)
    assert certbench.certify(PLAIN, classifier, torch.zeros(1, 2), Linf).radius >= 0
    with pytest.raises((NumericalError, UnsupportedError), match=r"computes constants|auto-LiRPA cannot bound"):
        certbench.certify(safe, classifier, torch.zeros(1, 2), Linf)


def chain(weights: list[float], bias: list[float]) -> Classifier:
    """Scales its two inputs again and again."""
    layers = [nn.Linear(2, 2) for _ in weights]
    with torch.no_grad():
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight.copy_(weight * torch.eye(2))
            layer.bias.zero_()
        layers[-1].bias.copy_(torch.tensor(bias))
    return Classifier(nn.Sequential(*layers).eval(), (2,), 2)


@every_safe
def test_underflow_of_the_program_is_counted(safe: dict[str, Any]) -> None:
    classifier = chain([1e-25, 1e-25, 1e38, 1e14], [0.0, 0.3])
    x = torch.tensor([[1.2, 0.0]])
    assert certbench.certify("crown", classifier, x, Linf).prediction != classifier(x).argmax(dim=1)
    assert certbench.certify(safe, classifier, x, Linf).radius == 0


@every_safe
def test_overflow_of_the_program_certifies_nothing(safe: dict[str, Any]) -> None:
    first, last = nn.Linear(1, 2), nn.Linear(2, 2)
    with torch.no_grad():
        first.weight.fill_(3e38)
        first.bias.zero_()
        last.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, -0.5]]))
        last.bias.zero_()
    classifier = Classifier(nn.Sequential(first, nn.ReLU(), last).eval(), (1,), 2)
    assert certbench.certify(safe, classifier, torch.ones(1, 1), Linf).radius == 0


class Literal(nn.Module):
    """A number that it makes of its buffer, another one in float32 than in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("parts", torch.tensor([16777216.0, 1.0, -16777216.0]))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.parts
        assert isinstance(parts, Tensor)
        return x * (float(parts[0] + parts[1] + parts[2]) - 0.5)


def test_numbers_that_are_made_of_buffers_are_refused() -> None:
    classifier = Classifier(nn.Sequential(Literal(), nn.Linear(2, 2)).eval(), (2,), 2)
    with pytest.raises(UnsupportedError, match="computes from its buffers"):
        certbench.certify(SAFE, classifier, torch.ones(1, 2), Linf)
