import itertools
import math
import random
from fractions import Fraction

import pytest
import torch
from torch import nn

from certbench.errors import NumericalError, UnsupportedError
from certbench.networks.image_maps import Convolution, Separable
from certbench.networks.maps import Dense, Scale
from certbench.numerics.rounding import dual, lengths, product, products
from certbench.numerics.spectral import DENSE, spectral
from certbench.verifiers.lipschitz import folding, layer_rules
from certbench.verifiers.lipschitz.folding import compose, convolution, linear
from certbench.verifiers.lipschitz.operator_norms import identity_norm, norm, spectral_norm, spread

P = (1.0, 2.0, math.inf)
GENERATOR = torch.Generator()


@pytest.fixture(autouse=True)
def seed():
    GENERATOR.manual_seed(0)


def gauss(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def exact_norm(matrix, s, r):
    """The operator norms that have a formula."""
    if s == 1:
        return float(torch.linalg.vector_norm(matrix, r, dim=0).max())
    if r == math.inf:
        return float(torch.linalg.vector_norm(matrix, dual(s), dim=1).max())
    return float(torch.linalg.matrix_norm(matrix, 2))


EXACT = [(s, r) for s, r in itertools.product(P, P) if s == 1 or r == math.inf or s == r == 2]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 3), (40, 60), (300, 200)])
@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e150])
def test_spectral_is_an_upper_bound_and_tight(shape, scale):
    matrix = gauss(*shape) * scale
    true = float(torch.linalg.svdvals(matrix)[0])
    assert true * (1 - 1e-14) <= spectral(matrix[None]) <= true * (1 + 1e-9)


@pytest.mark.parametrize("m, n", [(1, 1), (3, 7), (100, 99), (128, 3)])
def test_spectral_of_ones_in_exact_arithmetic(m, n):
    bound = Fraction(spectral(torch.ones(1, m, n, dtype=torch.float64)))
    assert m * n <= bound**2 <= m * n * (1 + Fraction(1, 10**9))


def test_spectral_never_below_in_exact_arithmetic():
    for exponent in range(200):
        matrix = gauss(2, 2) * torch.tensor([1.0, 10 ** (-exponent / 20)])
        (a, b), (c, d) = [[Fraction(x) for x in row] for row in matrix.tolist()]
        mu = Fraction(spectral(matrix[None])) ** 2
        p, q, r = mu - a * a - c * c, mu - b * b - d * d, a * b + c * d
        assert p >= 0 and q >= 0 and p * q >= r * r  # mu I - A^T A is positive semidefinite


def test_spectral_of_a_complex_batch_is_that_of_its_largest():
    batch = torch.complex(gauss(30, 6, 9), gauss(30, 6, 9))
    true = float(torch.linalg.svdvals(batch).max())
    assert true * (1 - 1e-14) <= spectral(batch) <= true * (1 + 1e-9)


def test_spectral_of_zero_is_zero_and_of_nan_is_refused():
    assert spectral(torch.zeros(1, 3, 2, dtype=torch.float64)) == 0
    for bad in (math.nan, math.inf):
        with pytest.raises(NumericalError):
            spectral(torch.full((1, 3, 2), bad, dtype=torch.float64))


def test_power_iteration_is_no_bound():
    matrix = gauss(400, 300)
    x = gauss(300)
    for _ in range(10):
        x = matrix.T @ (matrix @ x)
        x = x / x.norm()
    estimate, true = float((matrix @ x).norm()), float(torch.linalg.svdvals(matrix)[0])
    assert estimate < 0.999 * true <= spectral(matrix[None])


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


def layer_map(layer, size):
    """The linear map of a layer in eval mode, and its matrix by finite differences of unit vectors."""
    layer = layer.double().eval().requires_grad_(False)
    eye = torch.eye(math.prod(size), dtype=torch.float64).reshape(-1, *size)
    out = layer(eye) - layer(torch.zeros_like(eye))
    return layer_rules.LINEAR[type(layer)](layer, size, tuple(out.shape[1:])), out.flatten(1).T


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


def test_products_vanish_only_with_a_factor():
    assert product(0.0, math.inf) == 0
    assert product(1e-200, 1e-200) > 0
    assert products(torch.tensor([0.0, 1e-200], dtype=torch.float64), 1e-200).gt(0).tolist() == [
        False,
        True,
    ]
    assert float(lengths(torch.full((1, 2), 1e-200, dtype=torch.float64), 2.0)) > 1.4e-200
