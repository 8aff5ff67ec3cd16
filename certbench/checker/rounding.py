r"""Enclosures: float64 results with bounds of their rounding errors, in round to nearest (Higham, 2002; Rump, 2006).

A sum of n products, in any order, with or without fused operations, is off by at most $\gamma_n = n u / (1 - n u)$
times the sum of their moduli, $u = 2^{-53}$. `TINY` stands for what underflow adds, also where it is flushed to zero.
"""

import numpy as np

from certbench.checker.reading import Refused

UNIT = 2.0**-53
TINY = 1e-300
LARGEST = 1e7
"""Longest sum that is followed. Up to this length, all underflows together are below `TINY`."""


def gamma(roundings: int) -> float:
    """Compute the relative error that so many roundings can make."""
    if roundings > LARGEST:
        raise Refused(f"sums of {roundings} terms are longer than this checker can follow")
    return roundings * UNIT / (1 - roundings * UNIT) * (1 + 1e-10)


def up(value: np.ndarray, roundings: int = 1) -> np.ndarray:
    """Compute an upper bound of the exact number for `value`, computed from numbers >= 0 with so many roundings."""
    return value * (1 + 2 * gamma(roundings + 3)) + TINY


def product_up(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute an upper bound of the product of two matrices whose entries are all >= 0."""
    return up(a @ b, a.shape[-1] + 1)


def norm_up(a: np.ndarray, q: float) -> np.ndarray:
    """Compute an upper bound of the q-norm of each row, q = 1, 2 or inf."""
    moduli = np.abs(a)
    if q == np.inf:
        largest: np.ndarray = moduli.max(axis=-1)
        return largest
    if q == 1:
        return up(moduli.sum(axis=-1), a.shape[-1])
    unit = np.maximum(moduli.max(axis=-1, keepdims=True), TINY)  # squares of small numbers underflow
    squares = up(np.square(up(moduli / unit)).sum(axis=-1), a.shape[-1] + 2)
    return up(up(np.sqrt(squares)) * unit[..., 0])


def raised(value: float, roundings: int = 1) -> float:
    """Apply `up` to one number."""
    return float(up(np.array([value]), roundings)[0])


def least_eigenvalue(a: np.ndarray, guess: float) -> float:
    r"""Compute a lower bound of a symmetric matrix's least eigenvalue: just below `guess`, or -inf if that is too high.

    For any factor L of $A - g I$, exact or not, $A = g I + L L^T + R$ with the residual R computed here, and $L L^T$
    has no negative eigenvalue. So the least of A is at least $g - ||R||_F$. Rounding adds to the residual at most
    $\gamma_{n+6} (|L| |L|^T + |A| + |g| I)$, of Frobenius norm at most $\gamma_{n+6} (||L||_F^2 + ||A||_F + |g| n)$.
    """
    n = len(a)
    if not (np.isfinite(a).all() and np.isfinite(guess) and np.array_equal(a, a.T)):
        return -np.inf
    shift = guess * np.eye(n)
    try:
        factor = np.tril(np.linalg.cholesky(a - shift))
    except np.linalg.LinAlgError:
        return -np.inf
    residual, inner, outer = (
        float(norm_up(part.reshape(1, -1), 2.0)[0]) for part in (a - shift - factor @ factor.T, factor, a)
    )
    off = 1.01 * residual + 1.01 * gamma(n + 6) * (inner**2 + outer + abs(guess) * n) + TINY
    found = guess - off - 1e-15 * (abs(guess) + off)
    return found if np.isfinite(found) else -np.inf


def positive_semidefinite(a: np.ndarray, error: float) -> bool:
    """Say whether every symmetric matrix within `error` of `a`, in the 2-norm, is proved positive semidefinite."""
    trace = float(np.abs(np.diag(a)).sum())
    guess = 1.01 * error + 1.3 * gamma(len(a) + 6) * (trace + float(np.sqrt(np.square(a).sum()))) + TINY
    return bool(np.isfinite(error) and least_eigenvalue(a, guess) >= error)
