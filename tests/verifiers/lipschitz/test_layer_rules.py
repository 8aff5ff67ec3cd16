import itertools
import math
import random

import pytest
import torch
from torch import nn

from certbench.errors import UnsupportedError
from certbench.networks.image_maps import Separable
from certbench.networks.maps import Dense
from certbench.numerics.spectral import DENSE
from certbench.verifiers.lipschitz import folding, layer_rules
from certbench.verifiers.lipschitz.operator_norms import identity_norm, norm, spectral_norm, spread
from tests.support.matrices import EXACT, GENERATOR, exact_norm, gauss, layer_map


@pytest.fixture(autouse=True)
def seed():
    GENERATOR.manual_seed(0)


@pytest.mark.parametrize(
    "layer, size",
    [
        (nn.Linear(6, 4), (6,)),
        (nn.Conv2d(2, 3, 3, padding="same", dilation=2), (2, 6, 6)),
        (nn.Conv2d(2, 3, (2, 4), padding="same"), (2, 6, 6)),
        (nn.Conv2d(2, 3, 2, padding="valid"), (2, 6, 6)),
        (nn.Conv2d(2, 3, 3, (1, 2), padding=1, padding_mode="circular"), (2, 5, 6)),
        (nn.AvgPool2d(2), (3, 6, 6)),
        (nn.AvgPool2d(3, 2, 1), (2, 6, 8)),
        (nn.AvgPool2d((3, 1), 1, (1, 0)), (2, 5, 5)),
        (nn.AdaptiveAvgPool2d((2, 3)), (2, 6, 6)),
        (nn.AdaptiveAvgPool2d(1), (2, 5, 7)),
        (nn.AdaptiveAvgPool2d((3, None)), (2, 5, 7)),
        (nn.AdaptiveAvgPool2d((7, 4)), (1, 3, 6)),
        (nn.AvgPool2d(2, ceil_mode=True), (1, 5, 5)),
        (nn.AvgPool2d(3, 1, 1, count_include_pad=False), (1, 5, 5)),
        (nn.AvgPool2d((2, 3), divisor_override=-4), (2, 4, 4)),
        (nn.BatchNorm1d(4), (4,)),
        (nn.BatchNorm2d(3), (3, 4, 4)),
        (nn.BatchNorm2d(3, affine=False), (3, 4, 4)),
    ],
    ids=str,
)
def test_layers_are_bounded_by_their_matrices(layer, size):
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        layer.running_var.uniform_(0.01, 2.0, generator=GENERATOR)
        if layer.affine:
            layer.weight.data = gauss(layer.num_features)
    bounded, dense = layer_map(layer, size)
    for s, r in EXACT:
        if isinstance(bounded, Dense) or s == r:
            assert exact_norm(dense, s, r) == pytest.approx(norm(bounded, s, r), rel=1e-9)
        assert exact_norm(dense, s, r) <= norm(bounded, s, r) * (1 + 1e-13)


@pytest.mark.parametrize(
    "layer, size",
    [
        (nn.Linear(6, 4), (3, 6)),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), (1, 5, 5)),
        (nn.Conv2d(1, 1, 3, 2, padding=1, padding_mode="circular"), (1, 5, 5)),
        (nn.BatchNorm1d(4, track_running_stats=False), (4,)),
    ],
    ids=str,
)
def test_options_without_a_bound_are_refused(layer, size):
    with pytest.raises(UnsupportedError):
        layer_map(layer, size)


def test_batch_norm_multiplies_by_its_gain():
    layer = nn.BatchNorm2d(2, eps=0.0)
    layer.weight.data = torch.tensor([1.0, -100.0])
    bounded, _ = layer_map(layer, (2, 3, 3))
    assert 100 <= spectral_norm(bounded) <= 100 * (1 + 1e-12)
    assert norm(bounded, math.inf, 2.0) == pytest.approx(math.sqrt(9 * 1 + 9 * 100**2))


def random_pools(kind, count):
    """Average or maximum pools with all of their options, and maps for them."""
    draw = random.Random(0)
    for _ in range(count):
        k = (draw.randint(1, 4), draw.randint(1, 4))
        options = {
            "kernel_size": k,
            "stride": (draw.randint(1, 4), draw.randint(1, 4)),
            "padding": (draw.randint(0, k[0] // 2), draw.randint(0, k[1] // 2)),
            "ceil_mode": draw.random() < 0.5,
        }
        if kind is nn.MaxPool2d:
            options["dilation"] = (draw.randint(1, 2), draw.randint(1, 2))
        else:
            options["count_include_pad"] = draw.random() < 0.5
            options["divisor_override"] = draw.choice([None, None, 3])
        yield kind(**options), (draw.randint(1, 2), draw.randint(7, 9), draw.randint(7, 9))


ADAPTIVE = [((h, w), (2, 6, 7)) for h, w in itertools.product((1, 2, 4, 6, 9), (1, 3, 7, 8))]


@pytest.mark.parametrize("entries", [DENSE, 0], ids=["matrix", "separable"])
def test_average_pools_are_exact(monkeypatch, entries):
    monkeypatch.setattr(folding, "DENSE", entries)
    adaptive = ((nn.AdaptiveAvgPool2d(o), size) for o, size in ADAPTIVE)
    for layer, size in itertools.chain(random_pools(nn.AvgPool2d, 60), adaptive):
        bounded, dense = layer_map(layer, size)
        assert isinstance(bounded, Separable if entries == 0 else Dense)
        for s, r in EXACT:
            assert exact_norm(dense, s, r) * (1 - 1e-12) <= norm(bounded, s, r) <= exact_norm(dense, s, r) * (1 + 1e-9)
        assert norm(bounded, math.inf, 2.0) == pytest.approx(float(dense.sum(1).norm()))
        x = gauss(2, *size).abs()
        assert torch.allclose(spread(bounded, x).flatten(1), x.flatten(1) @ dense.T)
        assert bool((spread(bounded, x).flatten(1) >= (x.flatten(1) @ dense.T) * (1 - 1e-15)).all())


def test_the_most_windows_of_max_pools_are_what_an_impulse_moves():
    adaptive = ((nn.AdaptiveMaxPool2d(o), size) for o, size in ADAPTIVE)
    for layer, size in itertools.chain(random_pools(nn.MaxPool2d, 200), adaptive):
        out = layer(torch.eye(size[1] * size[2]).reshape(-1, 1, *size[1:]))
        most = int((out == 1).flatten(1).sum(1).max())
        assert layer_rules.WINDOWS[type(layer)](layer, size, (size[0], *out.shape[2:])) == most


@pytest.mark.parametrize("stride, constant", [(1, 3.0), (2, 2.0), (3, 1.0)])
def test_overlapping_max_pools_stretch(stride, constant):
    layer, x, impulse = nn.MaxPool2d(3, stride), torch.zeros(1, 1, 13, 13), torch.zeros(1, 1, 13, 13)
    impulse[..., 6, 6] = 1
    count = layer_rules.WINDOWS[nn.MaxPool2d](layer, (1, 13, 13), tuple(layer(x).shape[1:]))
    assert identity_norm(math.inf, 2.0, count) == pytest.approx(constant)
    assert float((layer(impulse) - layer(x)).norm()) == pytest.approx(constant)


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
    assert steepest <= layer_rules.SLOPES[type(layer)](layer) <= 1.0001 * steepest + 1e-9


def test_softplus_with_a_visible_jump_is_refused():
    with pytest.raises(UnsupportedError, match="threshold"):
        layer_rules.SLOPES[nn.Softplus](nn.Softplus(threshold=2))


def test_celu_that_grows_exponentially_is_refused():
    with pytest.raises(UnsupportedError, match="alpha"):
        layer_rules.SLOPES[nn.CELU](nn.CELU(-1.0))


@pytest.mark.parametrize("layer", [nn.LayerNorm, nn.InstanceNorm2d, nn.Hardshrink, nn.Threshold, nn.MultiheadAttention])
def test_what_has_no_constant_is_in_no_table(layer):
    assert layer not in {*layer_rules.LINEAR, *layer_rules.WINDOWS, *layer_rules.SLOPES}


def test_every_activation_has_a_test():
    tested = next(mark for mark in test_slopes_against_a_grid.pytestmark if mark.name == "parametrize").args[1]
    assert set(layer_rules.SLOPES) == {type(layer) for layer in tested}
