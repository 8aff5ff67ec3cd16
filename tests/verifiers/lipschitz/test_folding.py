import itertools
import math
import random
from fractions import Fraction

import pytest
import torch
from torch import nn

from certbench.errors import UnsupportedError
from certbench.networks.image_maps import Convolution, Separable
from certbench.networks.maps import Chain, Dense, Scale
from certbench.networks.structured_maps import Along, Select, Sparse, Transposed
from certbench.numerics.spectral import DENSE
from certbench.verifiers.lipschitz import folding
from certbench.verifiers.lipschitz.folding import added, bounded, compose, convolution, linear
from certbench.verifiers.lipschitz.operator_norms import norm, spectral_norm, spread
from tests.support.matrices import EXACT, GENERATOR, exact_norm, gauss, layer_map


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
    pool, dense = layer_map(nn.AvgPool2d((4, 3), 1), (4, 5, 5))
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


@pytest.mark.parametrize(
    "layer, size",
    [
        (nn.Linear(6, 4), (6,)),
        (nn.Conv2d(2, 3, 3, padding="same", dilation=2), (2, 6, 6)),
        (nn.Conv2d(2, 3, (2, 4), padding="same"), (2, 6, 6)),
        (nn.Conv2d(2, 3, 2, padding="valid"), (2, 6, 6)),
        (nn.Conv2d(2, 3, 3, (1, 2), padding=1, padding_mode="circular"), (2, 5, 6)),
        (nn.Conv2d(1, 1, 3, 2, padding=1, padding_mode="circular"), (1, 5, 5)),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), (1, 5, 5)),
        (nn.Conv1d(2, 3, 3, padding=1, padding_mode="replicate"), (2, 5)),
        (nn.ConvTranspose2d(2, 3, 3, 2), (2, 4, 4)),
        (nn.Upsample(scale_factor=2), (2, 3, 3)),
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
    layer_bound, dense = layer_map(layer, size)
    for s, r in EXACT:
        if isinstance(layer_bound, Dense) or s == r:
            assert exact_norm(dense, s, r) == pytest.approx(norm(layer_bound, s, r), rel=1e-9)
        assert exact_norm(dense, s, r) <= norm(layer_bound, s, r) * (1 + 1e-13)


def test_batch_norm_multiplies_by_its_gain():
    layer = nn.BatchNorm2d(2, eps=0.0)
    layer.weight.data = torch.tensor([1.0, -100.0])
    layer_bound, _ = layer_map(layer, (2, 3, 3))
    assert 100 <= spectral_norm(layer_bound) <= 100 * (1 + 1e-12)
    assert norm(layer_bound, math.inf, 2.0) == pytest.approx(math.sqrt(9 * 1 + 9 * 100**2))


def random_pools(count):
    """Average pools with all of their options, and maps for them."""
    draw = random.Random(0)
    for _ in range(count):
        k = (draw.randint(1, 4), draw.randint(1, 4))
        options = {
            "kernel_size": k,
            "stride": (draw.randint(1, 4), draw.randint(1, 4)),
            "padding": (draw.randint(0, k[0] // 2), draw.randint(0, k[1] // 2)),
            "ceil_mode": draw.random() < 0.5,
        }
        options["count_include_pad"] = draw.random() < 0.5
        options["divisor_override"] = draw.choice([None, None, 3])
        yield nn.AvgPool2d(**options), (draw.randint(1, 2), draw.randint(7, 9), draw.randint(7, 9))


def equal(layer):
    """Whether all windows have the same weights."""
    padded = any(layer.padding) and not layer.count_include_pad
    return not layer.ceil_mode and layer.divisor_override is None and not padded


ADAPTIVE = [((h, w), (2, 6, 7)) for h, w in itertools.product((1, 2, 4, 6, 9), (1, 3, 7, 8))]


@pytest.mark.parametrize("entries", [DENSE, 0], ids=["matrix", "separable"])
def test_average_pools_are_exact(monkeypatch, entries):
    monkeypatch.setattr(folding, "DENSE", entries)
    adaptive = ((nn.AdaptiveAvgPool2d(o), size) for o, size in ADAPTIVE)
    for layer, size in itertools.chain(random_pools(60), adaptive):
        layer_bound, dense = layer_map(layer, size)
        plain = isinstance(layer, nn.AvgPool2d) and equal(layer)
        assert isinstance(layer_bound, (Separable if plain else Sparse | Dense) if entries == 0 else Dense)
        for s, r in EXACT:
            most = 1e-9 if plain or entries or (s, r) != (2, 2) else 1e-6
            assert (
                exact_norm(dense, s, r) * (1 - 1e-12) <= norm(layer_bound, s, r) <= exact_norm(dense, s, r) * (1 + most)
            )
        assert norm(layer_bound, math.inf, 2.0) == pytest.approx(float(dense.sum(1).norm()))
        x = gauss(2, *size).abs()
        assert torch.allclose(spread(layer_bound, x).flatten(1), x.flatten(1) @ dense.T)
        assert bool((spread(layer_bound, x).flatten(1) >= (x.flatten(1) @ dense.T) * (1 - 1e-15)).all())


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("size", [(9,), (6, 8), (4, 5, 6)])
def test_a_convolution_takes_the_padding_before_it(mode, size, monkeypatch):
    monkeypatch.setattr(folding, "DENSE", 0)
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(size)]
    torch.manual_seed(0)
    found, dense = layer_map(kind(2, 3, 3, padding=1, padding_mode=mode, bias=False), (2, *size))
    assert isinstance(found, Convolution) and found.circular == (mode == "circular") and found.before == (2, *size)
    assert torch.allclose(found.matrix(), dense)
    if mode == "circular":
        assert spectral_norm(found) == pytest.approx(exact_norm(dense, 2, 2), rel=1e-9)


def test_other_selections_before_a_convolution_stay_apart():
    kernel = gauss(2, 2, 3, 3)
    layer, places = Convolution(kernel, (2, 6, 6), (2, 4, 4)), torch.arange(32).view(2, 4, 4)
    padded = nn.functional.pad(places, (1, 1, 1, 1), value=-1)
    assert isinstance(compose(layer, Select(padded.flatten(), 32)), Convolution)
    for wrong in (padded.flip(2), padded.flip(0), torch.where(padded == 5, 6, padded), padded.clamp(min=0)):
        assert compose(layer, Select(wrong.flatten(), 32)) is None
    assert compose(layer, Select(torch.full((72,), -1), 32)) is None


@pytest.mark.parametrize("kind", ["matrices", "identity", "selections"])
def test_sums_of_maps_of_one_value(kind):
    first, second = linear(gauss(3, 3)), linear(gauss(3, 3))
    apart = [Select(torch.tensor([0, -1, 2]), 3), Select(torch.tensor([-1, 0, -1]), 3)]
    parts = {"matrices": [first, second], "identity": [None, second], "selections": apart}[kind]
    joint = added(parts)
    assert joint is not None
    expected = sum(torch.eye(3, dtype=torch.float64) if part is None else part.matrix() for part in parts)
    assert torch.allclose(joint.matrix(), expected)
    assert added([Select(torch.tensor([0, 1, 2]), 3), apart[0]]) is None


def test_selections_compose_with_matrices():
    pick, matrix = Select(torch.tensor([2, -1, 0, 2]), 3), linear(gauss(3, 5))
    rows, columns = compose(pick, matrix), compose(linear(gauss(2, 4)), pick)
    assert isinstance(rows, Dense) and torch.equal(rows.weight, pick.matrix() @ matrix.weight)
    assert isinstance(columns, Dense) and columns.inputs == 3 and bool((columns.weight[:, 1] == 0).all())


def test_small_maps_become_matrices_and_unknown_ones_are_refused():
    assert isinstance(bounded(Transposed(Convolution(gauss(1, 1, 2, 2), (1, 3, 3), (1, 2, 2)))), Dense)
    with pytest.raises(UnsupportedError, match="norms of a Chain"):
        bounded(Chain((Scale(gauss(2)), Scale(gauss(2)))))
