import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import certbench
from certbench import Classifier, ThreatModel
from certbench.errors import NumericalError, UnsupportedError
from certbench.verifiers.lipschitz import propagation
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
        (nn.LayerNorm(6), r"1 \(LayerNorm\)"),
        (nn.Softmax(dim=1), r"1 \(Softmax\)"),
        (nn.BatchNorm1d(6, track_running_stats=False), r"1 \(BatchNorm1d\).*running statistics"),
        (nn.GroupNorm(2, 6), r"1 \(GroupNorm\)"),
        (nn.Threshold(0.1, 20.0), r"1 \(Threshold\)"),
        (nn.Softplus(threshold=1), r"1 \(Softplus\).*threshold"),
        (Softmax(), "softmax"),
        (Square(), "mul.*both factors"),
        (BatchCentred(), "mean"),
        (DataDependent(), "cannot trace"),
        (ReadsAValue(), "abs"),
        (OverwritesABranch(), "elu.*in place"),
        (AddsInPlaceToABranch(), "iadd changes in place a value that is used again"),
        (AddsFarAway(), "iadd changes in place a value that is used again"),
        (DividesBy(), "truediv.*divisor"),
        (Repeats(), "add.*another shape"),
        (MovingBias(), "linear"),
        (AlwaysDrops(), "drops at random"),
        (ScalesTheSecond(), "mul.*differently"),
        (MergesTheBatch(), "view"),
        (Hooked(), r"1 \(Hooked\) has hooks"),
        (Replaced(), r"1 \(Replaced\).*forward of its own"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_has_no_bound_is_refused_by_name(layer, match):
    with pytest.raises(UnsupportedError, match=match):
        prepare(wrap(nn.Linear(6, 6), layer, nn.Linear(6, 4)), 2.0)


def test_subclasses_of_known_layers_are_not_trusted():
    class Fake(nn.ReLU):
        pass

    Fake.__module__ = "torch.nn.fake"  # a leaf to torch.fx
    with pytest.raises(UnsupportedError, match=r"1 \(Fake\)"):
        prepare(wrap(nn.Linear(6, 6), Fake(), nn.Linear(6, 4)), 2.0)


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


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(3, 1), nn.AdaptiveMaxPool2d(4), nn.AvgPool2d(3), nn.AdaptiveAvgPool2d(4)]
)
def test_pooling_of_images_without_channels_is_refused(pool):
    """Torch pools both axes; taking the first one for channels gave a radius of .333 where .12 is refuted."""
    features = pool(torch.zeros(1, 6, 6)).numel()
    with pytest.raises(UnsupportedError, match="without channels"):
        prepare(Classifier(nn.Sequential(pool, nn.Flatten(), nn.Linear(features, 2)).eval(), (6, 6), 2), 1.0)


def test_a_function_along_the_last_axis_is_refused_like_its_layer():
    with pytest.raises(UnsupportedError, match="along the last axis"):
        prepare(Classifier(AlongTheLastAxis().eval(), (80, 60), 2), math.inf)


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
