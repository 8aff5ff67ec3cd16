import math

import pytest
import torch
from torch import nn

from certbench.core.classifier import Regressor
from certbench.networks.reading import read
from certbench.verifiers.lipschitz.ranges import Ranges


class Everything(nn.Module):
    """Convolutions, pooling, norms, attention, gates, quotients."""

    def __init__(self):
        super().__init__()
        self.conv, self.up = nn.Conv2d(1, 3, 3, 2, 1), nn.ConvTranspose2d(3, 2, 2, 2)
        self.norm, self.last = nn.LayerNorm(18), nn.Linear(18, 4)

    def forward(self, x):
        h = torch.nn.functional.max_pool2d(torch.relu(self.up(torch.nn.functional.gelu(self.conv(x)))), 3, 1, 1)
        h = self.norm(torch.nn.functional.avg_pool2d(h, 2).flatten(1)).view(-1, 6, 3)
        h = (h @ h.transpose(1, 2)).softmax(-1) @ torch.tanh(h) - h.mean(1, keepdim=True)
        h = torch.maximum(h, h.flip(2)).flatten(1)
        return self.last(torch.sigmoid(h) * torch.exp(0.1 * h) / (1 + h.square()))


MODULES = {
    "everything": (Everything(), (1, 6, 6), 4),
    "lstm": (nn.Sequential(nn.Flatten(), nn.Unflatten(1, (6, 6)), nn.GELU()), (1, 6, 6), 36),
    "activations": (nn.Sequential(nn.SiLU(), nn.Linear(5, 5), nn.Softplus(), nn.ELU(), nn.Hardswish()), (5,), 5),
}


def ranges(module, shape, outputs, domain):
    graph = read(Regressor(nn.Sequential(module, nn.Flatten()).double().eval(), shape, outputs))
    found = Ranges(graph, domain)
    return graph, [found.of(at) for at in range(len(graph.nodes))]


@pytest.mark.parametrize("domain", [(0.2, 0.9), (-30.0, 30.0), None])
@pytest.mark.parametrize("name", MODULES)
def test_all_values_lie_in_their_ranges(name, domain):
    torch.manual_seed(0)
    module, shape, outputs = MODULES[name]
    graph, found = ranges(module, shape, outputs, domain)
    low, high = domain or (-100.0, 100.0)
    x = low + (high - low) * torch.rand(300, graph.inputs, dtype=torch.float64)
    x = torch.cat([x, low + (high - low) * torch.randint(0, 2, (300, graph.inputs)), 1e-3 * x + 0.999 * x[:1]])
    for node, value, (least, most) in zip(graph.nodes, graph.values(x), found, strict=True):
        slack = 1e-9 * value.abs().amax() + 1e-12  # the values are rounded, too
        assert bool((value >= least - slack).all()) and bool((value <= most + slack).all()), node.describe()
    if domain == (0.2, 0.9):
        assert all(bool(least.isfinite().all() and most.isfinite().all()) for least, most in found)


def test_an_affine_layer_on_a_box_has_the_range_of_its_corners():
    layer = nn.Linear(4, 3)
    _, found = ranges(layer, (4,), 3, (-1.0, 2.0))
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 2.0], dtype=torch.float64)] * 4)
    with torch.no_grad():
        values = layer.double()(corners)
    assert torch.allclose(found[-1][0], values.amin(dim=0)) and torch.allclose(found[-1][1], values.amax(dim=0))


def test_one_end_may_be_infinite():
    weights = nn.Linear(3, 2, bias=False)
    weights.weight.data = torch.tensor([[1.0, 2.0, 0.0], [-1.0, 0.0, -3.0]])
    _, found = ranges(nn.Sequential(nn.ReLU(), weights), (3,), 2, None)
    assert found[-1][0].tolist() == [pytest.approx(0.0), -math.inf]
    assert found[-1][1].tolist() == [math.inf, pytest.approx(0.0)]


@pytest.mark.parametrize(
    "module, low, high",
    [
        (nn.Sigmoid(), 0.0, 1.0),
        (nn.Tanh(), -1.0, 1.0),
        (nn.Softmax(dim=1), 0.0, 1.0),
        (nn.LayerNorm(4, elementwise_affine=False), -2.0, 2.0),
        (nn.Sequential(nn.Unflatten(1, (1, 4)), nn.MaxPool1d(2), nn.Hardtanh(-3, 4)), -3.0, 4.0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_values_that_are_bounded_everywhere(module, low, high):
    outputs = module(torch.zeros(1, 4)).numel()
    _, found = ranges(module, (4,), outputs, None)
    assert float(found[-1][0].min()) == pytest.approx(low, abs=1e-9)
    assert float(found[-1][1].max()) == pytest.approx(high, abs=1e-9)
