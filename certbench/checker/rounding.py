r"""Enclosures: float64 results with bounds of their rounding errors, in round to nearest (Higham, 2002; Rump, 2006).

A sum of n products, in any order, with or without fused operations, is off by at most $\gamma_n = n u / (1 - n u)$
times the sum of their moduli, $u = 2^{-53}$. `TINY` stands for what underflow adds, also where it is flushed to zero.
"""

import numpy as np

from certbench.checker.reading import Refused

UNIT = 2.0**-53
TINY = 1e-300
LARGEST = 1e7
"""The longest sum that is followed: up to it, all underflows together are below `TINY`."""


def gamma(roundings: int) -> float:
    """The relative error of a number that so many roundings went into."""
    if roundings > LARGEST:
        raise Refused(f"sums of {roundings} terms are longer than this checker follows")
    return roundings * UNIT / (1 - roundings * UNIT) * (1 + 1e-10)


def up(value: np.ndarray, roundings: int = 1) -> np.ndarray:
    """At least the number >= 0 that `value` was computed for, with so many roundings, all of numbers >= 0."""
    return value * (1 + 2 * gamma(roundings + 3)) + TINY


def product_up(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """At least the product of two matrices whose entries are all >= 0."""
    return up(a @ b, a.shape[-1] + 1)


def affine_error(weight: np.ndarray, bias: np.ndarray, size: np.ndarray, relative: int = 0) -> np.ndarray:
    """How far `weight @ h + bias`, computed in float64, can be off, |h| <= size; `relative` roundings made `weight`."""
    moduli = up(product_up(np.abs(weight), size) + np.abs(bias))
    return up(moduli * gamma(weight.shape[1] + 2 + relative)) + TINY


def norm_up(a: np.ndarray, q: float) -> np.ndarray:
    """At least the q-norm of each row, q = 1, 2 or inf."""
    moduli = np.abs(a)
    if q == np.inf:
        largest: np.ndarray = moduli.max(axis=-1)
        return largest
    if q == 1:
        return up(moduli.sum(axis=-1), a.shape[-1])
    unit = np.maximum(moduli.max(axis=-1, keepdims=True), TINY)  # squares of small numbers are no floats
    squares = up(np.square(up(moduli / unit)).sum(axis=-1), a.shape[-1] + 2)
    return up(up(np.sqrt(squares)) * unit[..., 0])


def least_eigenvalue(a: np.ndarray, guess: float) -> float:
    r"""A lower bound of the eigenvalues of a symmetric matrix: `guess` less a little, or -inf if that is too high.

    Whatever Cholesky's factorisation $L$ of $A - g I$ is worth, $A = g I + L L^T + R$ with the residual $R$ computed
    here, and $L L^T$ has no negative eigenvalue. So the least one of $A$ is at least $g - ||R||_\infty$.
    """
    n = len(a)
    if a.shape != (n, n) or not np.isfinite(a).all() or not np.isfinite(guess) or not np.array_equal(a, a.T):
        return -np.inf
    try:
        factor = np.tril(np.linalg.cholesky(a - guess * np.eye(n)))
    except np.linalg.LinAlgError:
        return -np.inf
    back = factor @ factor.T
    residual = np.abs(a - back - guess * np.eye(n))
    moduli = product_up(np.abs(factor), np.abs(factor).T) + np.abs(a) + abs(guess) * np.eye(n)
    rounding = up(up(moduli, 3) * gamma(n + 6))
    off = up(up(residual + rounding).sum(axis=1), n).max() if n else 0.0
    found = float(guess - off)
    found -= abs(found) * 4 * UNIT + TINY
    return found if np.isfinite(found) else -np.inf


def proved_positive_definite(a: np.ndarray, error: float = 0.0) -> bool:
    """Whether every symmetric matrix within `error` of `a`, in the 2-norm, is proved to be positive definite."""
    size = float(np.abs(np.diag(a)).max(initial=0.0))
    guess = error + 8 * (len(a) + 8) ** 2 * UNIT * size + 4 * TINY
    return bool(np.isfinite(error) and error >= 0 and least_eigenvalue(a, guess) > error)
