"""Reading modules as ReLU networks: the same function, or a refusal that names the layer."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from certbench import Classifier, NumericalError, UnsupportedError
from certbench.networks.reading import logits_of, relu_network
from certbench.testing import network


class Forward(nn.Module):
    """A module from a function of its layers."""

    def __init__(self, forward: Callable[[nn.ModuleList, Tensor], Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.layers, x)


def batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module:
    assert layer.running_mean is not None and layer.running_var is not None
    layer.running_mean.uniform_(-1, 1)
    layer.running_var.uniform_(0.5, 2)
    return layer


def residual(m: nn.ModuleList, x: Tensor) -> Tensor:
    z = functional.relu(m[0](x.flatten(1)))
    return m[2](torch.relu(z - 0.5 * m[1](z) + 0.1))  # type: ignore[no-any-return]


def twice(m: nn.ModuleList, x: Tensor) -> Tensor:
    z = m[0](x.flatten(1))
    return m[2](torch.relu(m[1](torch.relu(m[1](z))) + z))  # type: ignore[no-any-return]


def branch(m: nn.ModuleList, x: Tensor) -> Tensor:
    z = m[0](x.flatten(1))
    return m[2](m[1](z) + z)  # type: ignore[no-any-return]


def alias(m: nn.ModuleList, x: Tensor) -> Tensor:
    z = m[0](x.flatten(1))
    h = torch.relu_(m[1](z))  # in eval mode dropout hands on the same memory
    return m[2](z + h)  # type: ignore[no-any-return]


def sleeping(layer: nn.Linear) -> nn.Linear:
    """So far below zero that no probe wakes its ReLU."""
    with torch.no_grad():
        layer.bias.fill_(-1e6)
    return layer


ZEROS = torch.zeros(3)


def constant(m: nn.ModuleList, x: Tensor, zeros: Tensor = ZEROS) -> Tensor:
    c = zeros.repeat(x.shape[0], 1)
    d = c.view(-1, 3)
    d += torch.relu(m[0](x.flatten(1)))
    return m[1](x.flatten(1)) + c  # type: ignore[no-any-return]


READ: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 3)),
    "lone": lambda: Forward(lambda m, x: m[0](x.flatten(1)), nn.Linear(72, 3)),
    "no bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)),
    "conv": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ),
    "uneven": lambda: nn.Sequential(nn.Conv2d(2, 3, (2, 3), stride=(3, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)),
    "pool": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    ),
    "norm": lambda: nn.Sequential(
        batch_norm(nn.BatchNorm2d(2)),
        nn.Flatten(),
        nn.Linear(72, 8),
        batch_norm(nn.BatchNorm1d(8)),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(8, 3),
    ),
    "residual": lambda: Forward(residual, nn.Linear(72, 6), nn.Linear(6, 6), nn.Linear(6, 3)),
    "twice": lambda: Forward(twice, nn.Linear(72, 6), nn.Linear(6, 6), nn.Linear(6, 3)),
    "constants": lambda: Forward(lambda m, x: 3 - m[0]((1 - x.flatten(1)) / 0.3), nn.Linear(72, 3)),
    "max": lambda: nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 3)),
    "leaky": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.LeakyReLU(), nn.Linear(4, 3)),
    "clamp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.ReLU6(), nn.Linear(4, 3)),
    "a slope per channel, then max pooling": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.PReLU(3, init=0.3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 3)
    ),
    "constant functions": lambda: Forward(
        lambda m, x: m[1](m[0](x.flatten(1)) ** 0 + m[0](x.flatten(1)).clamp(1, 0)) + m[2](x.flatten(1)),
        *(nn.Linear(72, 4), nn.Linear(4, 3), nn.Linear(72, 3)),
    ),
    "repeated to fit": lambda: Forward(
        lambda m, x: m[0](x.flatten(1)) + m[1](x.flatten(1)), nn.Linear(72, 3), nn.Linear(72, 1)
    ),
    "written into what it computes from its tensors": lambda: Forward(
        lambda m, x: constant(m, x, m[1].bias),
        nn.Linear(72, 3),
        nn.Linear(72, 3),  # type: ignore[arg-type]
    ),
    "overwritten": lambda: Forward(branch, nn.Linear(72, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)),
    "overwritten through an alias": lambda: Forward(alias, nn.Linear(72, 4), nn.Dropout(), nn.Linear(4, 3)),
    "split": lambda: Forward(
        lambda m, x: m[0](x.flatten(1)) + m[1](torch.relu(x.flatten(1).split(1, dim=1)[0])),
        nn.Linear(72, 3),
        nn.Linear(1, 3),
    ),
    "largest of all": lambda: Forward(
        lambda m, x: m[0](x.flatten(1)) + m[1](torch.relu(x.flatten(1).max(dim=1, keepdim=True)[0] - 400)),
        nn.Linear(72, 3),
        nn.Linear(1, 3),
    ),
    "pooling without channels": lambda: nn.Sequential(
        nn.Flatten(2), nn.AvgPool2d((1, 2)), nn.Flatten(), nn.Linear(36, 3)
    ),
    "circular": lambda: nn.Sequential(
        nn.Conv2d(2, 1, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(36, 3)
    ),
    "softmax last": lambda: Forward(lambda m, x: m[0](x.flatten(1)).log_softmax(1), nn.Linear(72, 3)),
    "stripes": lambda: Forward(
        lambda m, x: m[0](((x - torch.tensor([0.4, 0.6]).view(2, 1, 1)) * 2).flatten(1)), nn.Linear(72, 3)
    ),
}


def wrap(module: nn.Module, shape: tuple[int, ...] = (2, 6, 6), classes: int = 3) -> Classifier:
    return Classifier(module.eval(), shape, classes, "net")


@pytest.mark.parametrize("kind", READ)
def test_layers_compute_what_the_module_does(kind: str) -> None:
    torch.manual_seed(0)
    classifier = wrap(READ[kind]())
    net = relu_network(classifier)
    x = 3 * torch.randn(50, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, theirs = (
        y - y.mean(dim=1, keepdim=True) for y in (net.preactivations(x.flatten(1))[-1], classifier.double()(x))
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)  # a last log-softmax is left out


@pytest.mark.parametrize("kind", READ)
def test_maps_their_transposes_and_their_matrices_agree(kind: str) -> None:
    torch.manual_seed(0)
    for layer in relu_network(wrap(READ[kind]())).layers:
        for source, part in layer.maps.items():
            for each in (part, layer.paths[source]):
                h, a = torch.randn(3, each.inputs).double(), torch.randn(3, each.outputs).double()
                matrix = each.matrix()
                torch.testing.assert_close(each.forward(h), h @ matrix.T)
                torch.testing.assert_close(each.transpose(a), a @ matrix)
            assert (layer.paths[source].matrix() >= part.matrix().abs() - 1e-12).all()
        assert (layer.height >= layer.bias.abs() - 1e-12).all()


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "written into a constant": (
        lambda: Forward(constant, sleeping(nn.Linear(72, 3)), nn.Linear(72, 3)),
        "into a constant",
    ),
    "tanh": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 3), nn.Tanh(), nn.Linear(3, 3)), r"2 \(Tanh\)"),
    "product": (lambda: Forward(lambda m, x: m[0]((x * x.flip(2)).flatten(1)), nn.Linear(72, 3)), "multiplied"),
    "quotient": (lambda: Forward(lambda m, x: 1 / m[0](x.flatten(1)), nn.Linear(72, 3)), "not piecewise linear"),
    "jump": (lambda: Forward(lambda m, x: m[0](torch.sign(x.flatten(1))), nn.Linear(72, 3)), "test_reading.py.*jumps"),
    "comparison": (lambda: Forward(lambda m, x: m[0](x.flatten(1) * (x > 0).flatten(1)), nn.Linear(72, 3)), "jumps"),
    "precision": (lambda: Forward(lambda m, x: m[0](x.flatten(1)) * x.dtype.itemsize, nn.Linear(72, 3)), "dtype"),
    "branching": (
        lambda: Forward(lambda m, x: m[0](x.flatten(1) if x.sum() > 0 else -x.flatten(1)), nn.Linear(72, 3)),
        "test_reading.py.*asks for the values",
    ),
    "numbers": (
        lambda: Forward(lambda m, x: m[0](x.flatten(1)) + float(x.numpy().max() > 1e3), nn.Linear(72, 3)),
        "numpy",
    ),
    "the batch": (lambda: Forward(lambda m, x: m[0]((x - x.mean(0)).flatten(1)), nn.Linear(72, 3)), "other inputs"),
    "the batch's size": (lambda: Forward(lambda m, x: m[0](x.flatten(1)) * len(x), nn.Linear(72, 3)), "batch"),
    "chance": (lambda: Forward(lambda m, x: m[0](x.flatten(1)) + torch.rand(3), nn.Linear(72, 3)), "random"),
    "a changing buffer": (lambda: Counting(), "buffers"),
    "softmax inside": (
        lambda: Forward(lambda m, x: m[1](m[0](x.flatten(1)).softmax(1)), nn.Linear(72, 3), nn.Linear(3, 3)),
        "not piecewise linear",
    ),
}


class Counting(nn.Module):
    """Counts how often it runs, and adds that to its logits."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(72, 3)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.last(x.flatten(1)) + self.count


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_such_network_is_refused_with_the_reason(kind: str) -> None:
    make, reason = REFUSED[kind]
    with pytest.raises(UnsupportedError, match=reason):
        relu_network(wrap(make()))


def test_a_subclass_of_relu_is_read_as_what_it_does() -> None:
    class Odd(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return input.abs()

    classifier = wrap(nn.Sequential(nn.Flatten(), nn.Linear(72, 3), Odd()))
    x = torch.randn(9, 2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(relu_network(classifier).preactivations(x.flatten(1))[-1], classifier.double()(x))


def test_changed_weights_are_read_anew_and_unchanged_ones_shared() -> None:
    classifier = network("mlp")
    first = relu_network(classifier)
    assert relu_network(classifier) is first
    with torch.no_grad():
        classifier.module[3].weight.mul_(0.5)  # type: ignore[index, union-attr, operator]
    second = relu_network(classifier)
    assert second is not first
    x = torch.rand(2, 16, dtype=torch.float64)
    torch.testing.assert_close(second.preactivations(x)[-1], classifier.double()(x.view(2, 1, 4, 4)))


def test_nan_parameters_are_refused() -> None:
    classifier = network("mlp")
    with torch.no_grad():
        classifier.module[1].weight[0, 0] = torch.nan  # type: ignore[index, union-attr, operator]
    with pytest.raises(NumericalError):
        relu_network(classifier)


def test_a_module_without_parameters_is_bounded_in_float64() -> None:
    classifier = Classifier(Forward(lambda _, x: torch.cat([x.relu() + 0.1, -x], dim=1)).eval(), (1,), 2)
    exact = logits_of(classifier)
    assert exact.dtype == torch.float64
    assert exact(torch.ones(1, 1)).dtype == torch.float64
