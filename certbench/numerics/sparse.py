"""Upper bounds of norms of sparse matrices, rounded up."""

import math

import numpy as np
import scipy.sparse

from certbench.errors import NumericalError
from certbench.numerics.rounding import TINY, gamma

PRODUCTS = 2**25
"""Largest number of products of two entries that a Gram matrix may take. It then takes a few seconds."""

STEPS = 30
"""Number of steps towards the vector that a bound is computed with. Any positive vector gives a bound."""


def row_lengths(nonnegative: scipy.sparse.csr_matrix, q: float) -> np.ndarray:
    """Compute the q-norm of each row of nonnegative entries, rounded up; 0 only for a row of zeros.

    Raises:
        NumericalError: an entry is NaN or infinite.
    """
    matrix = scipy.sparse.csr_matrix(nonnegative, copy=True)
    matrix.eliminate_zeros()
    if not np.isfinite(matrix.data).all():
        raise NumericalError("a weight is NaN or infinite")
    result = np.zeros(matrix.shape[0])
    counts = np.diff(matrix.indptr)
    full = counts > 0
    if not full.any():
        return result
    starts = matrix.indptr[:-1][full]
    largest = np.maximum.reduceat(matrix.data, starts)
    if q == math.inf:
        result[full] = largest
        return result
    scale = np.maximum(largest, np.finfo(float).tiny)  # squares neither underflow nor overflow
    scaled = matrix.data / np.repeat(scale, counts[full])
    computed = scale * np.add.reduceat(scaled**q, starts) ** (1 / q)
    result[full] = np.nextafter(computed * (1 + gamma(int(counts.max()) + 8)), math.inf)
    return result


def spectral_bound(matrix: scipy.sparse.csr_matrix, relative: float = 0.0) -> float:
    r"""Compute an upper bound of the largest singular value, which is close if no entry is negative.

    For nonnegative B the spectral radius is at most $\max_i (B v)_i / v_i$, for every v > 0 (Collatz, 1942). Here B is
    $|A| |A|^T$, or $|A A^T|$ if that is affordable, whose spectral radius is no smaller than that of $A A^T$.

    Args:
        matrix: the stored entries.
        relative: upper bound of the distance of each exact entry to the stored one, relative to the stored one.

    Raises:
        NumericalError: an entry is NaN or infinite.
    """
    largest = float(abs(matrix).max()) if matrix.nnz else 0.0
    if not math.isfinite(largest):
        raise NumericalError("a weight is NaN or infinite")
    if largest == 0:
        return 0.0
    exponent = max(math.frexp(largest)[1], -1000)  # a power of two scales without rounding
    a = scipy.sparse.csr_matrix(matrix * math.ldexp(1.0, -exponent))
    in_rows, in_columns = np.diff(a.indptr), np.bincount(a.indices, minlength=a.shape[1])
    if (in_rows.astype(float) ** 2).sum() < (in_columns.astype(float) ** 2).sum():
        a, in_rows, in_columns = scipy.sparse.csr_matrix(a.T), in_columns, in_rows
    moduli = abs(a)
    moduli_t = scipy.sparse.csr_matrix(moduli.T)
    longest = int(in_rows.max() + in_columns.max())
    off = 2 * relative + relative**2 + gamma(2 * longest + 16)  # of the entries, and of the products of two

    def bound(gram: scipy.sparse.csr_matrix | None) -> float:
        v, best = np.ones(a.shape[0]), math.inf
        sums = longest if gram is None else int(np.diff(gram.indptr).max()) + longest
        for _ in range(STEPS):
            wide = moduli @ (moduli_t @ v)
            moved = wide if gram is None else gram @ v
            best = min(best, float(((moved + off * wide + TINY) / v).max()) * (1 + gamma(sums + 32)))
            v = np.maximum(moved / moved.max(), 1e-6)  # judged: where v is smaller, the quotients are too large
        return best

    squared = bound(None)
    if (a.data < 0).any() and (in_columns.astype(float) ** 2).sum() <= PRODUCTS:
        squared = min(squared, bound(abs(scipy.sparse.csr_matrix(a @ a.T))))
    if not math.isfinite(squared):
        raise NumericalError("a weight is too large for a norm in float64")
    try:
        return math.nextafter(math.ldexp(math.sqrt(squared) * (1 + gamma(8)), exponent), math.inf)
    except OverflowError as error:
        raise NumericalError("a weight is too large for a norm in float64") from error
