import pytest
import torch
from torch import nn

from certbench.errors import ConfigError
from certbench.models.architectures import plain
from certbench.models.recipes.interval_bounds import IntervalBounds, interval_bounds
from certbench.models.recipes.lipschitz_margin import lipschitz_constant
from tests.support.architectures import draw, network


@pytest.mark.parametrize("eps", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("name", plain.ARCHITECTURES)
def test_interval_bounds_enclose_sampled_points(name: str, eps: float) -> None:
    module, x = network(name), draw(4, 1, 8, 8)
    lower, upper = interval_bounds(module, (x - eps).clamp(min=0), (x + eps).clamp(max=1))
    uniform = 2 * draw(200, *x.shape) - 1
    for change in (uniform, uniform.sign()):
        logits = torch.stack([module(point) for point in (x + eps * change).clamp(0, 1)])
        assert (logits >= lower - 1e-9).all() and (logits <= upper + 1e-9).all()


def test_interval_bounds_are_exact_on_a_linear_network() -> None:
    module, x, eps = network("linear"), draw(4, 1, 8, 8), 0.1
    rows = module[2].weight.abs().sum(dim=1) / module[0].std.item()
    lower, upper = interval_bounds(module, x - eps, x + eps)
    assert torch.allclose(upper - module(x), eps * rows) and torch.allclose(module(x) - lower, eps * rows)


@pytest.mark.parametrize("name", plain.ARCHITECTURES)
def test_interval_margins_hold_at_sampled_points(name: str) -> None:
    module, x, y, eps = network(name), draw(10, 1, 8, 8), torch.arange(10), 0.05
    objective = IntervalBounds(eps)
    margins = objective.margins(module, x, y, eps)
    assert (margins[y, y] == 0).all()
    for change in 2 * draw(100, *x.shape) - 1:
        logits = module((x + eps * change.sign()).clamp(0, 1))
        assert (logits[y, y][:, None] - logits >= margins - 1e-9).all()


def test_layers_without_bounds_are_refused() -> None:
    x = torch.zeros(1, 4)
    with pytest.raises(ConfigError, match="no interval bounds for GELU"):
        interval_bounds([nn.GELU()], x, x)
    with pytest.raises(ConfigError, match="no interval bounds for Conv2d"):
        interval_bounds([nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")], x, x)
    with pytest.raises(ConfigError, match="no Lipschitz constant for Conv2d"):
        lipschitz_constant(network("cnn"))
    with pytest.raises(ConfigError, match="the last layer must be linear, not ReLU"):
        IntervalBounds(0.1).margins(nn.Sequential(nn.ReLU()), x, torch.tensor([0]), 0.1)
