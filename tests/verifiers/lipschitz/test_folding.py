import itertools
from fractions import Fraction

import pytest
import torch
from torch import nn

from certbench.networks.image_maps import Convolution, Separable
from certbench.networks.maps import Dense, Scale
from certbench.networks.structured_maps import Along, Select, Transposed
from certbench.verifiers.lipschitz import folding
from certbench.verifiers.lipschitz.folding import compose, convolution, linear
from certbench.verifiers.lipschitz.operator_norms import spectral_norm
from tests.support.matrices import GENERATOR, gauss, layer_map


@pytest.fixture(autouse=True)
def seed():
    GENERATOR.manual_seed(0)


def test_composition_bounds_its_rounding_in_exact_arithmetic():
    weights, scale = [gauss(6, 6) for _ in range(3)], gauss(6)
    layer = compose(linear(weights[0]), Scale(scale))
    assert layer is not None
    exact = [
        [Fraction(w) * Fraction(d) for w, d in zip(row, scale.tolist(), strict=True)] for row in weights[0].tolist()
    ]
    for weight in weights[1:]:
        layer = compose(linear(weight), layer)
        assert isinstance(layer, Dense)
        exact = [
            [sum(Fraction(w) * row[j] for w, row in zip(left, exact, strict=True)) for j in range(6)]
            for left in weight.tolist()
        ]
    for i, j in itertools.product(range(6), range(6)):
        distance = abs(exact[i][j] - Fraction(float(layer.weight[i, j])))
        assert 0 < distance <= Fraction(float(layer.error[i, j])) <= Fraction(1, 10**11)


@pytest.mark.parametrize("large", [False, True])
def test_scalings_fold_into_convolutions(large):
    kernel, before, after = gauss(4, 2, 3, 3), gauss(4), gauss(4)
    unfolded = Convolution(kernel, (4, 6, 6), (4, 6, 6), padding=(1, 1), groups=2)
    small = convolution(unfolded)
    layer = unfolded if large else small
    full = [d[:, None, None].expand(4, 6, 6) for d in (before, after)]
    folded = compose(layer, Scale(full[0]))
    assert folded is not None
    folded = compose(Scale(full[1]), folded)
    assert isinstance(folded, Convolution if large else Dense)
    dense = full[1].reshape(-1, 1) * small.weight * full[0].reshape(1, -1)
    assert torch.allclose(folded.matrix(), dense)
    assert spectral_norm(folded) >= float(torch.linalg.svdvals(dense)[0])


def test_scalings_fold_into_pools(monkeypatch):
    monkeypatch.setattr(folding, "DENSE", 0)
    pool, dense = layer_map(nn.AdaptiveAvgPool2d((2, 3)), (4, 5, 5))
    before, after = gauss(4), gauss(4)
    folded = compose(pool, Scale(before[:, None, None].expand(4, 5, 5)))
    assert folded is not None
    folded = compose(Scale(after[:, None, None].expand(4, 2, 3)), folded)
    assert isinstance(folded, Separable)
    dense = (after * before).repeat_interleave(6)[:, None] * dense
    assert torch.allclose(folded.matrix(), dense)
    true = float(torch.linalg.svdvals(dense)[0])
    assert true * (1 - 1e-14) <= spectral_norm(folded) <= true * (1 + 1e-9)


def test_scalings_that_vary_inside_a_channel_do_not_fold():
    layer = Convolution(gauss(2, 2, 3, 3), (2, 6, 6), (2, 6, 6), padding=(1, 1))
    varying = Scale(gauss(2, 6, 6))
    assert compose(layer, varying) is None and compose(varying, layer) is None


@pytest.mark.parametrize("size", [(7,), (4, 3, 5)])
def test_scalings_fold_into_convolutions_along_any_number_of_axes(size):
    one = (1,) * len(size)
    layer = Convolution(gauss(4, 2, *[3] * len(size)), (4, *size), (4, *size), one, one, one, groups=2)
    before, after = (gauss(4).reshape(4, *one).expand(4, *size) for _ in range(2))
    folded = compose(layer, Scale(before))
    assert folded is not None
    folded = compose(Scale(after), folded)
    assert isinstance(folded, Convolution)
    dense = after.reshape(-1, 1) * layer.matrix() * before.reshape(1, -1)
    assert torch.allclose(folded.matrix(), dense)


def test_selections_compose_and_other_kinds_stay_apart():
    first, second = Select(torch.tensor([2, -1, 0]), 3), Select(torch.tensor([0, 0, 2, -1]), 3)
    both = compose(second, first)
    assert isinstance(both, Select) and torch.equal(both.matrix(), second.matrix() @ first.matrix())
    for part in (Along(gauss(1, 3, 3)), Transposed(Dense(gauss(3, 3))), Scale(gauss(3))):
        assert compose(part, first) is None and compose(first, part) is None
