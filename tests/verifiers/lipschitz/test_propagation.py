"""Constants of graphs hold for every kind of node. The file is long because one table of layers serves all laws."""

import itertools
import math
import random

import pytest
import torch
from torch import nn
from torch.nn import functional

import certbench
from certbench import Classifier, ThreatModel
from certbench.core.classifier import Regressor
from certbench.errors import NumericalError, UnsupportedError
from certbench.networks.graph import Largest
from certbench.networks.reading import read
from certbench.verifiers.lipschitz import propagation
from certbench.verifiers.lipschitz.margin import LayerwiseLipschitz
from tests.support.constants import P, prepare, wrap


class AddsTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Linear(6, 6, bias=False)

    def forward(self, x):
        return x + torch.relu(self.branch(x))


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("table", [2**24, 0])
def test_sums_add_their_branches(p, table, monkeypatch):
    monkeypatch.setattr(propagation, "CHORDS", table)
    classifier = wrap(AddsTwice(), AddsTwice(), nn.Linear(6, 4))
    for i in range(2):
        classifier.module[i].branch.weight.data = 2 * torch.eye(6)
    classifier.module[2].weight.data = torch.eye(4, 6)
    distance = 9 * {1.0: 1, 2.0: math.sqrt(2), math.inf: 2}[p]
    assert float(prepare(classifier, p).constants[1, 3]) == pytest.approx(distance, rel=1e-9)


@pytest.mark.parametrize("table", [2**24, 0])
def test_a_spike_moves_every_window_of_an_overlapping_max_pool(table, monkeypatch):
    monkeypatch.setattr(propagation, "CHORDS", table)
    classifier = wrap(nn.MaxPool2d(3, 1), nn.Flatten(), nn.Linear(9, 4, bias=False), shape=(1, 5, 5))
    classifier.module[2].weight.data[:] = torch.tensor([[1.0], [0.0], [0.0], [-1.0]])
    spike = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    spike[..., 2, 2] = 1.0
    moved = (classifier.double()(spike) @ torch.tensor([1.0, 0.0, 0.0, -1.0], dtype=torch.float64)).item()
    for p in P:
        assert moved == 18 <= float(prepare(classifier, p).constants[0, 3])
    assert float(prepare(classifier, 1.0).constants[0, 3]) == pytest.approx(18)


def test_a_layer_used_twice_counts_twice():
    layer = nn.Linear(6, 6)
    state = prepare(wrap(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(6, 4)), 2.0)
    assert len(state.facts["layers"]) == 2


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


def test_reshaping_the_input_changes_nothing():
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1600, 4)]
    natural = prepare(wrap(Doubled(), *layers, shape=(3, 20, 20)), 1.0)
    flat = prepare(wrap(Doubled(), nn.Unflatten(1, (3, 20, 20)), *layers, shape=(1200,)), 1.0)
    assert torch.equal(natural.constants, flat.constants)


def test_batch_norm_counts():
    norm = nn.BatchNorm1d(6, eps=0.0)
    norm.weight.data[:] = 100.0
    first, last = nn.Linear(6, 6), nn.Linear(6, 4)
    plain = prepare(wrap(first, nn.ReLU(), last), 2.0).constants
    scaled = prepare(wrap(first, norm, nn.ReLU(), last), 2.0).constants
    assert torch.allclose(scaled, 100 * plain, rtol=1e-9)


class Softmax(nn.Module):
    def forward(self, x):
        return torch.softmax(x, dim=1)


class Square(nn.Module):
    def forward(self, x):
        return x * x


class BatchCentred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class DataDependent(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else 2 * x


class ReadsAValue(nn.Module):
    def forward(self, x):
        return x * x.abs().max()


class OverwritesABranch(nn.Module):
    def forward(self, x):
        y = functional.elu(x, 3.0, inplace=True)
        return x + y


class AddsInPlaceToABranch(nn.Module):
    def forward(self, x):
        x = x * 1.0
        y = x
        y += x.tanh()
        return x


class AddsFarAway(nn.Module):
    """Adds in place, to another name of its input, what is 0 near the origin."""

    def forward(self, x):
        other = x
        x += 5 * torch.relu(x - 100)
        return other


class DividesBy(nn.Module):
    def forward(self, x):
        return 1 / x


class Repeats(nn.Module):
    def forward(self, x):
        return (x.view(-1, 6, 1) + torch.zeros(3)).mean(2)


class MovingBias(nn.Module):
    def forward(self, x):
        return functional.linear(x, torch.eye(6, dtype=x.dtype), x)


class AlwaysDrops(nn.Module):
    def forward(self, x):
        return functional.dropout(x)


class ScalesTheSecond(nn.Module):
    def forward(self, x):
        return x * torch.tensor([[1.0], [2.0]])


class MergesTheBatch(nn.Module):
    def forward(self, x):
        return x.view(-1, 3).view(-1, 6)


class First(nn.Module):
    """Takes the first of several outputs."""

    def forward(self, found):
        return found[0]


class Exponential(nn.Module):
    def forward(self, x):
        return torch.exp(x)


class Same(nn.Linear):
    """The identity, as a last layer: no function before it is a head."""

    def __init__(self):
        super().__init__(4, 4, bias=False)
        self.weight.data = torch.eye(4)


class Hooked(nn.Identity):
    def __init__(self):
        super().__init__()
        self.register_forward_hook(lambda module, args, out: 100 * out)


class Replaced(nn.Identity):
    def __init__(self):
        super().__init__()
        self.forward = lambda x: 100 * x


@pytest.mark.parametrize(
    "layer, match",
    [
        (nn.BatchNorm1d(6, track_running_stats=False), "more than 1 value per channel"),
        (nn.Threshold(0.1, 20.0), r"1 \(Threshold\).*jumps"),
        (nn.Softplus(threshold=1), "other outputs"),
        (nn.Softplus(threshold=19.9), r"1 \(Softplus\).*threshold|other outputs"),
        (BatchCentred(), "the other inputs of a batch"),
        (DataDependent(), "values of its input"),
        (ReadsAValue(), "the other inputs of a batch"),
        (AlwaysDrops(), "draws random numbers"),
        (ScalesTheSecond(), "the other inputs of a batch"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_has_no_bound_is_refused_by_name(layer, match):
    with pytest.raises(UnsupportedError, match=match):
        prepare(wrap(nn.Linear(6, 6), layer, nn.Linear(6, 4)), 2.0)


class Fake(nn.ReLU):
    """A subclass of a known layer."""

    def forward(self, x):
        return 7 * x


class Attention(nn.Module):
    def forward(self, x):
        q = x.view(-1, 3, 2)
        return ((q @ q.transpose(1, 2)).softmax(-1) @ q).flatten(1)


class Normalises(nn.Module):
    """Divides pairs by their length, which is at least 1e-3."""

    def forward(self, x):
        return functional.normalize(x.view(-1, 3, 2), dim=2, eps=1e-3).flatten(1)


class Cosine(nn.Module):
    def forward(self, x):
        return x / x.norm(dim=1, keepdim=True)


class Maxima(nn.Module):
    def forward(self, x):
        return torch.cat([torch.maximum(x, x.flip(1)), torch.minimum(x, 2 * x.flip(1))], 1)[:, 3:9]


class Gates(nn.Module):
    def forward(self, x):
        return torch.sigmoid(x) * torch.tanh(x.flip(1))


BOUNDED = [
    *(nn.LayerNorm(6), nn.GroupNorm(2, 6), nn.Softmax(dim=1), nn.LogSoftmax(dim=1), nn.Tanhshrink()),
    *(OverwritesABranch(), AddsInPlaceToABranch(), AddsFarAway(), Repeats(), MovingBias(), MergesTheBatch()),
    *(Hooked(), Replaced(), Fake(), Maxima(), Gates(), nn.Softsign(), nn.LayerNorm(6, eps=0.5)),
    nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Softmax(dim=1), nn.Flatten()),
    nn.Sequential(nn.Unflatten(1, (6, 1)), nn.LSTM(1, 3, batch_first=True), First(), nn.Flatten(), nn.Linear(18, 6)),
    nn.Sequential(nn.LayerNorm(6), Attention()),
    nn.Sequential(nn.Unflatten(1, (1, 6)), nn.MaxPool1d(3, 1, 1), nn.Flatten()),
    nn.Sequential(nn.Tanh(), nn.Linear(6, 6), Exponential()),
]


def steeper(classifier, p, x, delta):
    """Return the largest ratio of a moved difference of logits to its constant, over pairs of points."""
    constants, exact = prepare(classifier, p).constants, classifier.double()
    moved = functional.pad(exact(x + delta) - exact(x), (0, 1))
    ratio = (moved[:, :, None] - moved[:, None]).abs() / delta.flatten(1).norm(p, dim=1)[:, None, None]
    return float((ratio / constants.clamp(min=1e-300)).max())


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("layer", BOUNDED, ids=lambda layer: str(layer).partition("\n")[0])
def test_constants_hold_for_every_kind_of_layer(layer, p):
    torch.manual_seed(0)
    first, last = nn.Linear(6, 6), nn.Linear(6, 4)
    torch.nn.init.orthogonal_(first.weight)
    classifier = wrap(first, layer, last)
    assert bool(prepare(classifier, p).constants.isfinite().all())
    x = torch.cat([torch.randn(300, 6, dtype=torch.float64) * size for size in (0.01, 1.0, 10.0)])
    x = x - torch.linalg.solve(first.weight.double(), first.bias.double()).detach()  # layers are steep near 0
    for size in (1e-4, 0.1, 3.0):
        delta = size * torch.randn(x.shape, dtype=torch.float64)
        spike = delta * (delta.abs() == delta.abs().amax(dim=1, keepdim=True))
        for step in (delta, spike, size * delta.sign()):
            assert steeper(classifier, p, x, step) <= 1 + 1e-7


@pytest.mark.parametrize("name", ["layer norm", "softmax", "tanh of 2 x", "sigmoid", "maximum", "gates"])
def test_constants_that_are_attained(name):
    """The steepest slope in the 2-norm, or in the inf-norm, by its formula."""
    layer, p, exact = {
        "layer norm": (nn.LayerNorm(4, eps=1e-4, elementwise_affine=False), 2.0, 100 * math.sqrt(2)),
        "softmax": (nn.Softmax(dim=1), math.inf, 1.0),
        "tanh of 2 x": (nn.Sequential(Doubled(), nn.Tanh()), 2.0, 2 * math.sqrt(2)),
        "sigmoid": (nn.Sigmoid(), 2.0, math.sqrt(2) / 4),
        "maximum": (
            nn.Sequential(nn.Unflatten(1, (1, 4)), nn.MaxPool1d(2), nn.Upsample(size=4), nn.Flatten()),
            math.inf,
            2.0,
        ),
        "gates": (nn.ReLU6(), 2.0, math.sqrt(2)),
    }[name]
    classifier = wrap(layer, Same(), shape=(4,))
    assert float(prepare(classifier, p).constants[0, 3]) == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize(
    "layer", [Square(), DividesBy(), Cosine(), Exponential(), Normalises()], ids=lambda layer: type(layer).__name__
)
def test_without_a_domain_some_constants_are_infinite_and_the_evidence_says_why(layer):
    x, classifier = torch.full((2, 6), 0.5), wrap(layer, nn.Linear(6, 4))
    for p in P:
        for rule in ("best", "absolute", "naive"):
            certificate = certbench.certify({"name": "lipschitz", "rule": rule}, classifier, x, ThreatModel(p))
            assert certificate.radius.tolist() == [0.0, 0.0]
            assert "no bound" in certificate.evidence[0]["reason"]
            found = certbench.certify({"name": "lipschitz", "rule": rule}, classifier, x, ThreatModel(p, (0.1, 1.0)))
            assert bool((found.radius > 0).all()) and "reason" not in found.evidence[0]


def test_what_may_be_undefined_certifies_nothing_even_times_zero():
    last = nn.Linear(6, 4)
    last.weight.data.zero_()
    last.bias.data[:] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    found = certbench.certify("lipschitz", wrap(DividesBy(), last), torch.ones(1, 6), ThreatModel(2.0))
    assert found.radius.tolist() == [0.0]


def test_steepness_counts_neuron_by_neuron():
    layer = nn.PReLU(4, init=1.0)
    layer.weight.data[:] = torch.tensor([1.0, 3.0, 1.0, 1.0])
    constants = prepare(wrap(layer, Same(), shape=(4,)), 2.0).constants
    assert constants[0, -1] == pytest.approx(1) and constants[1, -1] == pytest.approx(3)


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("layer", [Square(), DividesBy(), Cosine(), Exponential(), nn.Sigmoid(), nn.LayerNorm(6)])
def test_constants_on_a_domain_hold_there_and_are_no_larger(layer, p):
    torch.manual_seed(0)
    classifier, low, high = wrap(layer, nn.Linear(6, 4)), 0.1, 1.0
    whole = prepare(classifier, p).constants
    constants = LayerwiseLipschitz().prepare(classifier, ThreatModel(p, (low, high))).constants
    assert bool((constants <= whole * (1 + 1e-12)).all())
    x = low + (high - low) * torch.rand(4000, 6, dtype=torch.float64)
    y = low + (high - low) * torch.rand(4000, 6, dtype=torch.float64)
    ends = torch.randint(0, 2, (4000, 6)).to(x) * (high - low) + low
    exact = classifier.double()
    for a, b in ((x, y), (ends, 0.99 * ends + 0.01 * y), (x, 0.99 * x + 0.01 * y)):
        moved = functional.pad(exact(a) - exact(b), (0, 1))
        ratio = (moved[:, :, None] - moved[:, None]).abs() / (a - b).norm(p, dim=1)[:, None, None]
        assert bool((ratio <= constants * (1 + 1e-9)).all())
    assert float((ratio / constants.clamp(min=1e-300)).max()) > 1e-3


def test_slopes_count_only_where_their_argument_can_be():
    """After a tanh the argument of a sigmoid lies in [2, 4], where it is less steep than at 0."""
    layer = nn.Linear(1, 1)
    layer.weight.data.fill_(1.0)
    layer.bias.data.fill_(3.0)
    last = nn.Linear(1, 4, bias=False)
    last.weight.data[:] = torch.tensor([[1.0], [0.0], [0.0], [-1.0]])
    found = prepare(wrap(nn.Tanh(), layer, nn.Sigmoid(), last, shape=(1,)), 2.0).constants[0, 3]
    slope = torch.sigmoid(torch.tensor(2.0, dtype=torch.float64))
    assert float(found) == pytest.approx(2 * float(slope * (1 - slope)), rel=1e-7)


@pytest.mark.parametrize("head", [nn.Softmax(dim=1), nn.LogSoftmax(dim=1), nn.Sigmoid(), nn.Tanh()], ids=str)
@pytest.mark.parametrize("name", ["lipschitz", "eclipse", "fast-lip", "masked-product"])
def test_a_last_function_that_keeps_the_order_changes_no_radius(name, head):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)]
    x = torch.rand(3, 6)
    plain, headed = (
        certbench.certify(name, wrap(*parts), x, ThreatModel(2.0)).radius for parts in (layers, [*layers, head])
    )
    assert torch.equal(plain, headed) and bool((plain > 0).any())


def test_the_program_of_a_certificate_stays_that_of_the_module_with_its_head():
    classifier = wrap(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.Softmax(dim=1))
    state = prepare(classifier, 2.0)
    assert LayerwiseLipschitz().witness(state, torch.zeros(1, 6), torch.tensor([0]), torch.ones(1))["spectral"]


class MisleadingNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.flatten, self.size, self.relu = (nn.Linear(6, 6, bias=False) for _ in range(3))
        for layer in (self.flatten, self.size, self.relu):
            layer.weight.data = 10 * torch.eye(6)

    def forward(self, x):
        return self.relu(self.size(self.flatten(x)))


def test_names_of_layers_mean_nothing():
    last = nn.Linear(6, 4)
    misled = prepare(Classifier(nn.Sequential(MisleadingNames(), last).eval(), (6,), 4), 2.0).constants
    root = MisleadingNames()  # here the names carry no prefix
    root.relu.weight.data = root.relu.weight.data[:4]
    plain = prepare(wrap(last), 2.0).constants
    assert torch.allclose(misled, 1000 * plain, rtol=1e-9)
    assert float(prepare(Classifier(root.eval(), (6,), 4), 2.0).constants[0, 1]) == pytest.approx(1000 * math.sqrt(2))


def test_parametrised_weights_are_read_as_they_are_used():
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(6, 4))
    weight = torch.nn.functional.pad(layer.double().weight.detach(), (0, 0, 0, 1))
    found = prepare(wrap(layer), 2.0).constants
    assert torch.allclose(found, (weight[:, None] - weight).norm(dim=2), rtol=1e-9)


class AlongTheLastAxis(nn.Module):
    """Applies a matrix to each of many rows, which no table of chords follows."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 60) / 60)
        self.last = nn.Linear(80, 2)

    def forward(self, x):
        return self.last(torch.flatten(torch.relu(functional.linear(x, self.weight)), 1))


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(3, 1), nn.AdaptiveMaxPool2d(4), nn.AvgPool2d(3), nn.AdaptiveAvgPool2d(4)]
)
def test_pooling_of_images_without_channels_pools_both_axes(pool, p):
    """Taking the first axis for channels gave a radius of .333 where .12 is refuted."""
    last = nn.Linear(pool(torch.zeros(1, 6, 6)).numel(), 4, bias=False)
    last.weight.data[:] = torch.tensor([[1.0], [0.0], [0.0], [-1.0]])
    found = float(prepare(wrap(pool, nn.Flatten(), last, shape=(6, 6)), p).constants[0, 3])
    whole = torch.ones(36, dtype=torch.float64)
    for delta in (whole, functional.one_hot(torch.tensor(14), 36).to(whole)):
        moved = 2 * float(pool(delta.view(1, 6, 6)).sum())
        assert moved / float(delta.norm(p)) <= found * (1 + 1e-9)


@pytest.mark.parametrize("p", P)
def test_a_function_along_the_last_axis_is_bounded_like_its_layer(p):
    torch.manual_seed(0)
    classifier = Classifier(AlongTheLastAxis().eval(), (80, 60), 2)
    row = classifier.module.last.weight.detach().double().diff(dim=0)  # type: ignore[union-attr,operator]
    share = row.sign().t() / 60  # every pixel moves all means of its row
    delta = share.expand(80, 60).contiguous()
    x = torch.ones(1, 80, 60, dtype=torch.float64)
    moved = (classifier.double()(x + delta) - classifier.double()(x)).diff(dim=1).abs()
    found = float(prepare(classifier, p).constants[0, 1])
    assert 0 < float(moved) / float(delta.flatten().norm(p)) <= found * (1 + 1e-9)
    assert found <= float(row.abs().sum()) * 2


@pytest.mark.parametrize(
    "layer",
    [
        *(
            nn.ReLU(),
            nn.ReLU6(),
            nn.Hardtanh(-2, 3),
            nn.LeakyReLU(0.1),
            nn.LeakyReLU(-3),
            nn.PReLU(init=1.5),
            nn.ELU(2.0),
        ),
        *(nn.ELU(), nn.SELU(), nn.Softplus(beta=3), nn.Tanh(), nn.Sigmoid(), nn.Hardsigmoid(), nn.Softsign()),
        *(nn.CELU(2.0), nn.LogSigmoid(), nn.Tanhshrink(), nn.Softshrink(0.3)),
        *(nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Hardswish()),
    ],
    ids=str,
)
def test_slopes_against_a_grid(layer):
    x = torch.linspace(-12, 12, 600_001, dtype=torch.float64, requires_grad=True)
    steepest = float(torch.autograd.grad(layer.double()(x).sum(), x)[0].abs().max())
    found = float(prepare(wrap(layer, Same().double(), shape=(4,)), 1.0).constants[0, -1])
    assert steepest * (1 - 1e-7) <= found <= 1.0001 * steepest + 1e-9  # the sixth of torch's hardsigmoid is rounded


def random_pools(count):
    """Maximum pools with all of their options, and maps for them."""
    draw = random.Random(0)
    for _ in range(count):
        k = (draw.randint(1, 4), draw.randint(1, 4))
        options = {
            "kernel_size": k,
            "stride": (draw.randint(1, 4), draw.randint(1, 4)),
            "padding": (draw.randint(0, k[0] // 2), draw.randint(0, k[1] // 2)),
            "dilation": (draw.randint(1, 2), draw.randint(1, 2)),
            "ceil_mode": draw.random() < 0.5,
        }
        yield nn.MaxPool2d(**options), (draw.randint(1, 2), draw.randint(7, 9), draw.randint(7, 9))
    for output in itertools.product((1, 2, 4, 6), (1, 3, 7)):
        yield nn.AdaptiveMaxPool2d(output), (2, 6, 7)


def test_the_most_windows_of_max_pools_are_what_an_impulse_moves():
    for layer, size in random_pools(30):
        out = layer(torch.eye(size[1] * size[2]).reshape(-1, 1, *size[1:]))
        most = int((out == 1).flatten(1).sum(1).max())
        features = size[0] * out[0].numel()
        if features > 1:
            graph = read(Regressor(nn.Sequential(layer, nn.Flatten()).eval(), size, features))
            blocks = [node.block for node in graph.nodes if isinstance(node.block, Largest)]
            assert [propagation.sharing(block.windows) for block in blocks] == [most] or (not blocks and most == 1)


@pytest.mark.parametrize("stride, constant", [(1, 3.0), (2, 2.0), (3, 1.0)])
def test_overlapping_max_pools_stretch(stride, constant):
    layer, x, impulse = nn.MaxPool2d(3, stride), torch.zeros(1, 1, 13, 13), torch.zeros(1, 1, 13, 13)
    impulse[..., 6, 6] = 1
    features = layer(x).numel()
    found = propagation.feature_constants(
        Regressor(nn.Sequential(layer, nn.Flatten()).double().eval(), (1, 13, 13), features), 2.0
    )
    assert found[2.0] == pytest.approx(constant)
    assert float((layer(impulse) - layer(x)).norm()) == pytest.approx(constant)


@pytest.mark.parametrize("table", [2**24, 0])
def test_values_side_by_side_count_each_for_itself(table, monkeypatch):
    """In the inf-norm a concatenation moves as far as its fastest part, in the 2-norm as the root of squares."""
    monkeypatch.setattr(propagation, "CHORDS", table)
    found = propagation.feature_constants(Regressor(SideBySide().double().eval(), (4,), 8), 2.0)
    assert found[2.0] == pytest.approx(math.sqrt(10))
    found = propagation.feature_constants(Regressor(SideBySide().double().eval(), (4,), 8), math.inf)
    assert found[math.inf] == pytest.approx(3)


class SideBySide(nn.Module):
    def forward(self, x):
        return torch.cat([torch.relu(x), torch.tanh(3 * x)], dim=1)


@pytest.mark.parametrize("name", ["lipschitz", "crown", "jacobian-zonotope", "fast-lip", "masked-product", "recurjac"])
@pytest.mark.parametrize("weights", [(1e-200, 1e300, 1e-200), (1e300, 1e-200, 1e-200), (1e-200, 1e-200, 1e300)])
def test_weights_whose_products_underflow_are_refused(name, weights):
    layers = [nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)]
    module = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        for layer, weight in zip(layers[::2], weights, strict=True):
            layer.weight.fill_(weight)
            layer.bias.zero_()
        layers[-1].weight[1] = 0
        layers[-1].bias[0] = math.prod(weights) / 2
    with pytest.raises((UnsupportedError, NumericalError), match=r"1e150|read as|too large"):
        certbench.certify(name, Classifier(module, (1,), 2), torch.zeros(1, 1), ThreatModel(2.0))
