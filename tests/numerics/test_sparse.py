"""Norms of sparse matrices: never below the truth, and close to it."""

import math

import numpy as np
import pytest
import scipy.sparse

from certbench import NumericalError
from certbench.numerics.sparse import row_lengths, spectral_bound


def matrices(nonnegative: bool) -> list[scipy.sparse.csr_matrix]:
    draw, found = np.random.default_rng(0), []
    for _ in range(60):
        shape = draw.integers(1, 20, 2)
        dense = draw.standard_normal(shape) * (draw.random(shape) < draw.choice([0.1, 0.4, 1.0]))
        found.append(scipy.sparse.csr_matrix(abs(dense) if nonnegative else dense))
    return found


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1.0, 1e150])
@pytest.mark.parametrize("nonnegative", [True, False])
def test_a_spectral_bound_is_never_below_the_truth(nonnegative: bool, scale: float) -> None:
    slacks = []
    for matrix in matrices(nonnegative):
        true = float(np.linalg.norm(matrix.toarray(), 2))
        bound = spectral_bound(matrix * scale)
        assert true * scale * (1 - 1e-13) <= bound
        slacks.append(bound / (true * scale) - 1 if true else bound)
    assert np.median(slacks) < (1e-3 if nonnegative else 0.3) and max(slacks) < (0.01 if nonnegative else 1.0)


def test_an_entry_that_is_off_is_counted() -> None:
    for matrix in matrices(False):
        larger = np.linalg.norm((matrix * (1 + 1e-6)).toarray(), 2)
        assert spectral_bound(matrix, 1e-6) >= larger * (1 - 1e-14)


def test_signs_that_cancel_are_seen() -> None:
    """Rows of a Hadamard matrix are orthogonal: the Gram matrix says so, the moduli do not."""
    hadamard = scipy.sparse.csr_matrix(np.kron(*[np.kron([[1.0, 1.0], [1.0, -1.0]], [[1.0, 1.0], [1.0, -1.0]])] * 2))
    assert 4 <= spectral_bound(hadamard) <= 4 * (1 + 1e-9)


@pytest.mark.parametrize("q", [1.0, 2.0, math.inf])
def test_lengths_of_rows(q: float) -> None:
    for matrix in matrices(True):
        for scale in (1e-200, 1.0, 1e200):
            true = np.linalg.norm(matrix.toarray(), q, axis=1) * scale
            found = row_lengths(matrix * scale, q)
            assert (true * (1 - 1e-15) <= found).all() and (found <= true * (1 + 1e-12)).all()


def test_numbers_that_are_none_are_refused() -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(NumericalError):
            spectral_bound(scipy.sparse.csr_matrix([[1.0, value]]))
        with pytest.raises(NumericalError):
            row_lengths(scipy.sparse.csr_matrix([[1.0, abs(value)]]), 2.0)
