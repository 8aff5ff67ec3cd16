"""Float64 arithmetic with its rounding enclosed."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.errors import NumericalError

UNIT = 2.0**-53
"""Relative error of one rounding."""


TINY = 1e-300
"""More than underflow can take from any sum that fits into memory."""


LARGEST = 1e150
"""What the largest row sums of a network's layers, where above 1, may multiply to. Underflow anywhere then stays below
1e-150 in whatever it is multiplied with, and margins have to exceed 1e-100; see `certifier.FLOOR`."""


TOO_LARGE = "its weights multiply up to more than 1e150, beyond which underflow elsewhere may be felt"


def gamma(roundings: float) -> float:
    r"""$\gamma_k$, the relative error that k roundings in a row can make."""
    return roundings * UNIT / (1 - roundings * UNIT)


def product(a: float, b: float) -> float:
    """Product of nonnegative bounds, rounded up; 0 only if one of them is."""
    return 0.0 if a == 0 or b == 0 else math.nextafter(a * b, math.inf)


def products(a: Float[Tensor, " n"], b: float) -> Float[Tensor, " n"]:
    """Products of nonnegative bounds, rounded up; 0 only if a factor is."""
    raised = (a * b).nextafter(torch.full_like(a, torch.inf))
    return torch.where((a == 0) | (b == 0), 0.0, raised)


def total(a: float, b: float) -> float:
    """Sum of nonnegative bounds, rounded up."""
    return math.nextafter(a + b, math.inf) if a and b else a + b


def outward(nonnegative: Float[Tensor, "..."], roundings: int) -> Float[Tensor, "..."]:
    """Entries that came about by so many roundings and perhaps underflow, rounded up; never 0."""
    return (nonnegative * (1 + gamma(roundings + 4))).clamp_(min=TINY)


def dual(p: float) -> float:
    """The dual exponent, 1/p + 1/q = 1."""
    return {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[p]


def lengths(entries: Float[Tensor, "n k"], q: float) -> Float[Tensor, " n"]:
    """The q-norm of each row of nonnegative entries, rounded up; 0 only for a row of zeros."""
    scale = entries.amax(1).clamp(min=torch.finfo(torch.float64).tiny)  # squares neither underflow nor overflow
    computed = scale * torch.linalg.vector_norm(entries / scale[:, None], q, dim=1)
    raised = computed * (1 + gamma(entries.shape[1] + 8))
    return torch.where(entries.amax(1) == 0, 0.0, raised.nextafter(torch.full_like(raised, torch.inf)))


def longest(entries: Float[Tensor, "n k"], q: float) -> float:
    """The largest q-norm of a row, rounded up.

    Raises:
        NumericalError: an entry is NaN or infinite.
    """
    result = float(lengths(entries, q).max())
    if not math.isfinite(result):
        raise NumericalError("a weight is NaN or infinite")
    return result
