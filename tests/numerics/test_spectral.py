import math
from fractions import Fraction

import pytest
import torch

from certbench.errors import NumericalError
from certbench.numerics.spectral import spectral
from tests.support.matrices import GENERATOR, gauss


@pytest.fixture(autouse=True)
def seed():
    GENERATOR.manual_seed(0)


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
