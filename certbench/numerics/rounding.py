"""Float64 arithmetic with enclosed rounding errors."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from certbench.errors import NumericalError

UNIT = 2.0**-53
"""Relative error of one rounding."""


TINY = 1e-300
"""Bound of what underflow can take from any sum that fits into memory."""


LARGEST = 1e150
"""Upper limit of the product of the layers' largest row sums, each counted as at least 1. Underflow in any layer then
stays below 1e-150 after all later layers, and margins have to exceed 1e-100; see `certifier.FLOOR`."""


TOO_LARGE = "the product of its weights exceeds 1e150, so that underflow could change a margin"


def gamma(roundings: float, unit: float = UNIT) -> float:
    r"""Return $\gamma_k = k u / (1 - k u)$, the relative error that k roundings in a row can make."""
    return roundings * unit / (1 - roundings * unit)


def product(a: float, b: float) -> float:
    """Multiply nonnegative bounds, rounded up; the result is 0 only if a factor is."""
    return 0.0 if a == 0 or b == 0 else math.nextafter(a * b, math.inf)


def products(a: Float[Tensor, " n"], b: float) -> Float[Tensor, " n"]:
    """Multiply nonnegative bounds entry by entry, rounded up; an entry is 0 only if a factor is."""
    raised = (a * b).nextafter(torch.full_like(a, torch.inf))
    return torch.where((a == 0) | (b == 0), 0.0, raised)


def total(a: float, b: float) -> float:
    """Add nonnegative bounds, rounded up."""
    return math.nextafter(a + b, math.inf) if a and b else a + b


def outward(nonnegative: Float[Tensor, "..."], roundings: int) -> Float[Tensor, "..."]:
    """Round up entries that were computed with so many roundings and perhaps underflow; the result is never 0."""
    return (nonnegative * (1 + gamma(roundings + 4))).clamp_(min=TINY)


def dual(p: float) -> float:
    """Return the dual exponent q, 1/p + 1/q = 1."""
    return {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[p]


def lengths(entries: Float[Tensor, "n k"], q: float) -> Float[Tensor, " n"]:
    """Compute the q-norm of each row of nonnegative entries, rounded up; 0 only for a row of zeros."""
    scale = entries.amax(1).clamp(min=torch.finfo(torch.float64).tiny)  # squares neither underflow nor overflow
    computed = scale * torch.linalg.vector_norm(entries / scale[:, None], q, dim=1)
    raised = computed * (1 + gamma(entries.shape[1] + 8))
    return torch.where(entries.amax(1) == 0, 0.0, raised.nextafter(torch.full_like(raised, torch.inf)))


def longest(entries: Float[Tensor, "n k"], q: float) -> float:
    """Compute the largest q-norm of a row, rounded up.

    Raises:
        NumericalError: an entry is NaN or infinite.
    """
    result = float(lengths(entries, q).max())
    if not math.isfinite(result):
        raise NumericalError("a weight is NaN or infinite")
    return result
