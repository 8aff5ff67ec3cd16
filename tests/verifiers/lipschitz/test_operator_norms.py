import itertools
import math
import random

import pytest
import scipy.sparse
import torch
from torch import nn

from certbench import UnsupportedError
from certbench.networks.image_maps import Convolution, Separable
from certbench.networks.maps import Chain, Dense, Scale
from certbench.networks.structured_maps import Along, Select, Sparse, Transposed
from certbench.verifiers.lipschitz import operator_norms
from certbench.verifiers.lipschitz.folding import convolution, linear
from certbench.verifiers.lipschitz.operator_norms import norm, spectral_norm, spread
from tests.support.matrices import EXACT, GENERATOR, P, exact_norm, gauss


@pytest.fixture(autouse=True)
def seed():
    GENERATOR.manual_seed(0)


@pytest.mark.parametrize("s, r", EXACT)
def test_dense_norms_are_exact(s, r):
    for shape in [(1, 1), (4, 9), (30, 20)]:
        matrix = gauss(*shape)
        bound, true = norm(linear(matrix), s, r), exact_norm(matrix, s, r)
        assert true * (1 - 1e-14) <= bound <= true * (1 + 1e-9)


def test_norms_from_inf_and_to_one_against_all_corners_of_the_cube():
    for rows in [*range(1, 7)] * 8:
        matrix = gauss(rows, 8) * torch.logspace(0, -3, 8, dtype=torch.float64)
        corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=8)), dtype=torch.float64)
        layer = linear(matrix)
        from_box = float((corners @ matrix.T).norm(dim=1).max())
        assert from_box <= norm(layer, math.inf, 2.0) <= 1.5 * from_box
        to_one = float((corners[:, : len(matrix)] @ matrix).norm(dim=1).max())  # of the transpose, by duality
        assert to_one <= norm(layer, 2.0, 1.0)


def random_convolutions(count, sizes, channels):
    """Convolutions, padded by different amounts before and behind, and their matrices."""
    draw = random.Random(0)
    while count:
        groups = draw.choice([1, 1, 1, 2, 3]) if sizes[1] < 16 else draw.choice([1, 2])
        k, s, d, n = ((draw.randint(*ends), draw.randint(*ends)) for ends in [(1, 5), (1, 3), (1, 2), sizes])
        circular = draw.random() < 0.3
        before, behind = (tuple(draw.randint(0, min(k[i], n[i])) for i in range(2)) for _ in range(2))
        if circular:  # as many outputs as strides fit into the map
            reach = [d[i] * (k[i] - 1) for i in range(2)]
            n = tuple(-(-max(n[i], reach[i] + 1) // s[i]) * s[i] for i in range(2))
            before = tuple(draw.randint(0, reach[i]) for i in range(2))
            behind = tuple(reach[i] - before[i] for i in range(2))
        if any(n[i] + before[i] + behind[i] < d[i] * (k[i] - 1) + 1 for i in range(2)):
            continue
        kernel = gauss(groups * draw.randint(1, channels), draw.randint(1, channels), *k) + draw.choice([0.0, 1.0])
        eye = torch.eye(groups * kernel.shape[1] * n[0] * n[1], dtype=torch.float64).unflatten(1, (-1, *n))
        padding = (before[1], behind[1], before[0], behind[0])
        padded = nn.functional.pad(eye, padding, mode="circular" if circular else "constant")
        dense = nn.functional.conv2d(padded, kernel, stride=s, dilation=d, groups=groups)
        count -= 1
        sizes_of = eye.shape[1:], dense.shape[1:]
        yield Convolution(kernel, *map(tuple, sizes_of), s, before, d, groups, circular), dense.flatten(1).T


def test_400_random_convolutions_against_their_matrices():
    for trial, (layer, dense) in enumerate(random_convolutions(400, (1, 7), 2)):
        matrix = Dense(layer.matrix())
        assert torch.equal(matrix.weight, dense)
        assert torch.equal(layer.transpose(torch.eye(layer.outputs).double()), dense)
        assert torch.equal(layer.forward(torch.eye(layer.inputs).double()).T, dense)
        true = exact_norm(dense, 2, 2)
        assert true <= min(spectral_norm(layer), spectral_norm(matrix)) * (1 + 1e-12) and spectral_norm(
            matrix
        ) <= true * (1 + 1e-9)
        assert spectral_norm(layer) <= true * (1 + 1e-9) or not layer.circular
        for s, r in set(EXACT) - {(2.0, 2.0)}:
            assert exact_norm(dense, s, r) == pytest.approx(norm(layer, s, r), rel=1e-12)
        if trial % 5 == 0:
            x = gauss(3, dense.shape[1]).sign()
            assert float((x @ dense.T).norm(dim=1).max()) <= norm(layer, math.inf, 2.0)
            x, positive = x.exp(), x.exp() @ dense.abs().T
            moved = spread(layer, x.unflatten(1, layer.before)).flatten(1)
            assert bool((moved >= positive).all()) and torch.allclose(moved, positive, rtol=1e-12)


def test_100_random_convolutions_of_larger_maps_are_within_one_percent_in_the_median():
    slacks = []
    for layer, dense in random_convolutions(100, (16, 18), 1):
        true = exact_norm(dense, 2, 2)
        assert true <= spectral_norm(layer) * (1 + 1e-12)
        slacks.append(spectral_norm(layer) / true - 1)
    assert min(slacks) < 1e-12 and sorted(slacks)[50] < 0.01


def test_a_twist_lets_no_frequency_count_that_the_border_takes_away():
    blur = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    for n in (2, 5, 16):  # a tridiagonal matrix of ones, norm 1 + 2 cos(pi / (n + 1))
        layer = Convolution(blur.reshape(1, 1, 1, 3), (1, 1, n), (1, 1, n), padding=(0, 1))
        assert spectral_norm(layer) == pytest.approx(1 + 2 * math.cos(math.pi / (n + 1)), rel=1e-10)


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1.0, 1e30, 1e150])
@pytest.mark.parametrize(
    "kernel, n, stride, padding, dilation, groups",
    [
        ((6, 1, 3, 3), (5, 5), (1, 1), (1, 1), (1, 1), 6),
        ((2, 3, 7, 5), (3, 2), (1, 1), (3, 2), (1, 1), 1),
        ((3, 2, 2, 1), (7, 6), (3, 4), (0, 0), (1, 1), 1),
        ((2, 2, 2, 2), (1, 1), (1, 1), (1, 2), (2, 3), 1),
        ((4, 1, 1, 1), (4, 4), (1, 1), (0, 0), (1, 1), 2),
        ((2, 1, 1, 4), (1, 9), (5, 1), (0, 4), (2, 2), 1),
    ],
    ids=["depthwise", "kernel above map", "gaps", "border only", "pointwise", "wide"],
)
def test_odd_convolutions_at_all_scales(kernel, n, stride, padding, dilation, groups, scale):
    steep = torch.logspace(0, -20, kernel[-1], dtype=torch.float64)
    for weight in (gauss(*kernel) * scale, gauss(*kernel) * steep * scale, torch.zeros(kernel, dtype=torch.float64)):
        eye = torch.eye(kernel[1] * groups * n[0] * n[1], dtype=torch.float64).unflatten(1, (-1, *n))
        dense = nn.functional.conv2d(eye, weight, None, stride, padding, dilation, groups)
        large = Convolution(weight, tuple(eye.shape[1:]), tuple(dense.shape[1:]), stride, padding, dilation, groups)
        for layer in (convolution(large), large):
            for s, r in EXACT:
                assert exact_norm(dense.flatten(1).T, s, r) <= norm(layer, s, r) * (1 + 1e-12)
            assert math.isfinite(norm(layer, math.inf, 2.0))
            assert spectral_norm(layer) == 0 or bool((weight != 0).any())


def test_circular_padding_is_exact():
    layer = Convolution(gauss(3, 2, 3, 3), (2, 6, 8), (3, 6, 4), (1, 2), (1, 1), circular=True)
    assert spectral_norm(layer) == pytest.approx(float(torch.linalg.svdvals(layer.matrix())[0]), rel=1e-10)


def test_torus_of_the_input_is_no_bound_for_zero_padding():
    kernel = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64).reshape(1, 1, 1, 3)
    layer = Convolution(kernel, (1, 1, 3), (1, 1, 3), padding=(0, 1))
    torus = Convolution(kernel, (1, 1, 3), (1, 1, 3), padding=(0, 1), circular=True)
    true = float(torch.linalg.svdvals(layer.matrix())[0])
    assert spectral_norm(torus) < 1.7321 < 1.8019 < true < spectral_norm(layer) < 1.848
    assert spectral_norm(convolution(layer)) == pytest.approx(true)


@pytest.mark.parametrize(
    "taps, n, o, stride, padding",
    [([-1, -1, 1, 1], 2, 2, 1, 0), ([-1, 0, 0, 1], 2, 1, 3, 2)],
    ids=["behind the last output", "before the first input"],
)
def test_the_torus_is_long_enough_on_both_sides(taps, n, o, stride, padding):
    kernel = torch.tensor(taps, dtype=torch.float64).reshape(1, 1, 1, 4)
    layer = Convolution(kernel, (1, 1, n), (1, 1, o), (1, stride), (0, padding))
    assert spectral_norm(layer) >= float(torch.linalg.svdvals(layer.matrix())[0]) >= 1


def test_a_large_convolution_is_within_one_percent_of_power_iteration():
    kernel = gauss(32, 16, 3, 3)
    layer = convolution(Convolution(kernel, (16, 32, 32), (32, 16, 16), (2, 2), (1, 1)))
    assert isinstance(layer, Convolution)
    x = gauss(1, 16, 32, 32)
    for _ in range(200):
        y = nn.functional.conv2d(x, kernel, stride=2, padding=1)
        x = nn.functional.conv_transpose2d(y, kernel, stride=2, padding=1, output_padding=1)
        x = x / x.norm()
    below = float(nn.functional.conv2d(x, kernel, stride=2, padding=1).norm())
    assert below <= spectral_norm(layer) <= 1.01 * below


def true_norm(matrix, s, r):
    """Any norm of a matrix of at most 10 rows and columns; some by all corners of the cube."""
    if (s, r) in EXACT:
        return exact_norm(matrix, s, r)
    if r == 1 and s == 2:
        return true_norm(matrix.T, math.inf, 2.0)
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=matrix.shape[1])), dtype=torch.float64)
    return float(torch.linalg.vector_norm(corners @ matrix.T, r, dim=1).max())


def structured():
    """Members of every kind with at most 10 inputs and outputs, by name, and the pairs of norms that are exact."""
    draw = random.Random(0)
    every = set(itertools.product(P, P))
    for trial in range(12):
        i, o = draw.randint(1, 10), draw.randint(1, 10)
        index = torch.randint(-1, i, (o,), generator=GENERATOR)
        holes = gauss(o, i) * (torch.rand(o, i, generator=GENERATOR) < 0.4)
        yield f"select {trial}", Select(index, i), every
        yield f"turned select {trial}", Transposed(Select(index, i)), every
        sparse = Sparse.of(scipy.sparse.csr_matrix(holes.numpy()))
        yield f"sparse {trial}", sparse, set(EXACT)
        yield f"turned sparse {trial}", Transposed(sparse), set(EXACT)
        blocks, outer, inner = draw.choice([(1, 2, 2), (2, 1, 2), (2, 2, 1), (3, 1, 1), (1, 3, 1)])
        along = Along(gauss(blocks, draw.randint(1, 2), draw.randint(1, 2)), outer, inner)
        yield f"along {trial}", along, set(EXACT)
        yield f"turned along {trial}", Transposed(along), set(EXACT)
    kernel = gauss(2, 1, 3)
    narrow = Convolution(kernel, (1, 5), (2, 5), (1,), (1,), (1,))
    yield "1d", narrow, set(EXACT) - {(2.0, 2.0)}
    yield "turned 1d", Transposed(narrow), set(EXACT) - {(2.0, 2.0)}
    yield "turned dense", Transposed(Dense(gauss(3, 5))), set(EXACT)
    yield "turned scale", Transposed(Scale(gauss(4))), set(EXACT)
    pool = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]], dtype=torch.float64)
    yield "turned separable", Transposed(Separable(Scale(gauss(1)), Dense(pool), Dense(pool.flip(0)))), set(EXACT)
    yield "turned twice", Transposed(Transposed(Dense(gauss(3, 5)))), set(EXACT)


@pytest.mark.parametrize("written_out", [True, False])
def test_structured_maps_against_brute_force(written_out, monkeypatch):
    if not written_out:
        monkeypatch.setattr(operator_norms, "DENSE", 0)
    for name, part, exact in structured():
        matrix = part.matrix()
        for s, r in itertools.product(P, P):
            true, bound = true_norm(matrix, s, r), norm(part, s, r)
            assert true * (1 - 1e-14) <= bound, (name, s, r)
            if (s, r) in exact and (written_out or (s, r) != (2.0, 2.0) or "sparse" not in name):
                assert bound <= true * (1 + 1e-9) + 1e-290, (name, s, r)
            assert bound <= 4 * true + 1e-290, (name, s, r)
        positive = gauss(2, part.inputs).abs()
        true = positive @ matrix.abs().T
        moved = spread(part, positive).flatten(1)
        assert bool((moved >= true * (1 - 1e-15)).all()), name
        torch.testing.assert_close(moved, true, rtol=1e-12, atol=1e-290)


def test_entries_that_were_rounded_count_in_every_norm():
    weight = torch.ones(1, 2, dtype=torch.float64) / 3
    rounded = 1 + 100 * 2.0**-53  # the exact entries may be larger by so much
    for part in (
        Sparse.of(scipy.sparse.csr_matrix(weight.numpy()), None, 100),
        Along(weight[None], entry_roundings=100),
        Transposed(Dense(weight.T, entry_roundings=100)),
    ):
        for s, r in itertools.product(P, P):
            assert norm(part, s, r) >= true_norm(weight * rounded, s, r)


def test_averages_and_interpolations_of_many_pixels_are_within_a_percent():
    eye = torch.eye(9 * 9, dtype=torch.float64).reshape(-1, 1, 9, 9)
    for apply in (
        nn.AvgPool2d(3, 2, 1),
        nn.AdaptiveAvgPool2d(4),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Upsample(size=(20, 13), mode="bilinear", align_corners=True),
    ):
        matrix = apply(eye).flatten(1).T
        channels = scipy.sparse.csr_matrix(scipy.sparse.kron(scipy.sparse.eye(300), matrix.numpy()))
        true = float(torch.linalg.matrix_norm(matrix, 2))
        assert true * (1 - 1e-13) <= norm(Sparse.of(channels), 2.0, 2.0) <= true * 1.01


def test_convolutions_along_one_and_three_axes_against_their_matrices():
    draw, slacks = random.Random(1), []
    for axes in [1, 3] * 25:
        k, s, d, p = ([draw.randint(*ends) for _ in range(axes)] for ends in ((1, 3), (1, 2), (1, 2), (0, 2)))
        n = [draw.randint(3, 6 if axes == 1 else 4) for _ in range(axes)]
        circular = draw.random() < 0.3
        if circular:
            n = [-(-max(n[i], d[i] * (k[i] - 1) + 1) // s[i]) * s[i] for i in range(axes)]
            after = [n[i] // s[i] for i in range(axes)]
        else:
            after = [(n[i] + 2 * p[i] - d[i] * (k[i] - 1) - 1) // s[i] + 1 for i in range(axes)]
        if min(after) < 1 or (circular and any(p[i] > d[i] * (k[i] - 1) for i in range(axes))):
            continue
        groups = draw.choice([1, 2])
        kernel = gauss(2 * groups, draw.randint(1, 2), *k)
        before = (groups * kernel.shape[1], *n)
        part = Convolution(kernel, before, (2 * groups, *after), tuple(s), tuple(p), tuple(d), groups, circular)
        matrix = part.matrix()
        for a, b in EXACT:
            true, bound = exact_norm(matrix, a, b), norm(part, a, b)
            assert true * (1 - 1e-13) <= bound
            if a == b == 2 and not circular:
                slacks.append(bound / true - 1)
            else:
                assert bound <= true * (1 + 1e-9)
        x = gauss(3, part.inputs).sign()
        assert float((x @ matrix.T).norm(dim=1).max()) <= norm(part, math.inf, 2.0) * (1 + 1e-14)
    assert sorted(slacks)[len(slacks) // 2] < 0.2


def test_a_transpose_without_a_bound_is_refused():
    with pytest.raises(UnsupportedError, match="norm of a transposed Chain"):
        norm(Transposed(Chain((Dense(gauss(2, 3)), Dense(gauss(3, 2))))), 2.0, 2.0)


@pytest.mark.parametrize("size, after, stride", [(2, 2, 1), (5, 3, 2), (4, 6, 1)], ids=["taps", "stride", "turns"])
def test_circular_padding_where_taps_meet_is_refused(size, after, stride):
    part = Convolution(gauss(1, 1, 3), (1, size), (1, after), (stride,), (1,), (1,), circular=True)
    for layer in (part, Transposed(part)):
        for s, r in itertools.product(P, P):
            with pytest.raises(UnsupportedError, match="circular padding"):
                norm(layer, s, r)


def test_rounded_entries_of_a_product_count_in_its_transpose():
    """Entries that cancelled are off by more than their own size."""
    product = Dense(torch.zeros(2, 3).double(), torch.ones(2, 3).double(), entry_roundings=100)
    for s, r in itertools.product(P, P):
        assert norm(Transposed(product), s, r) >= true_norm(torch.full((3, 2), 100 * 2.0**-53).double(), s, r)
