"""Spectral norms: estimates and proved upper bounds."""

import math

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from certbench.errors import NumericalError
from certbench.numerics.rounding import TINY, UNIT, gamma

DENSE, SIDE = 2**22, 2048
"""Largest number of entries, and largest number of rows or columns (whichever are fewer), up to which a convolution
becomes a matrix, exact at the border of the map. A judgement: its norm then takes two seconds at most. For random
kernels of 3 x 3 the bound from a torus would be 2 % larger on maps of 8 x 8, 10 % on 4 x 4 and 50 % on 2 x 2."""


def estimate(matrices: Inexact[Tensor, "batch m n"]) -> Float[Tensor, " batch"]:
    """Estimate the largest singular values from below, by a few steps of power iteration."""
    x = torch.randn(matrices.shape[2], 1, generator=torch.Generator().manual_seed(0), dtype=matrices.dtype)
    for _ in range(5):
        y = matrices @ x
        y = y / torch.linalg.vector_norm(y, dim=(1, 2), keepdim=True).clamp(min=TINY)
        x = (y.mH @ matrices).mH  # avoids a copy of the matrices
    result: Tensor = torch.linalg.vector_norm(x, dim=(1, 2))
    return result


def spectral(matrices: Inexact[Tensor, "batch m n"]) -> float:
    r"""Compute an upper bound of the largest singular value in a batch of real or complex matrices.

    With $G = \mathrm{fl}(A^* A)$: $\|A\|_2^2 \leq \lambda_{\max}(G) + \gamma_{m+2} \|A\|_F^2$. If the Cholesky
    factorisation of $B = (\mu - c) I - G$ completes, then $R^* R = B + E$ with
    $\|E\|_2 \leq \gamma_{n+2} / (1 - \gamma_{n+2}) \operatorname{tr} B \leq c$, so that $\lambda_{\max}(G) \leq \mu$.
    The code takes twice that c, because a BLAS may multiply by reciprocals, and $8 u \mu$ for the diagonal. For
    real square matrices of n <= 2000 the relative excess of the bound is below 1e-9.

    Raises:
        NumericalError: an entry is NaN or infinite.
    """
    largest = float(matrices.abs().max())
    if not math.isfinite(largest):
        raise NumericalError("a weight is NaN or infinite")
    if largest == 0:
        return 0.0
    exponent = max(math.frexp(largest)[1], -1000)  # a power of two scales without rounding, and nothing underflows
    matrices = matrices * math.ldexp(1.0, -exponent)
    if matrices.shape[1] < matrices.shape[2]:
        matrices = matrices.mH
    m, n = matrices.shape[1:]
    arithmetic = 4 if matrices.is_complex() else 1  # real roundings in a complex product and sum
    gram = matrices.mH @ matrices
    frobenius = 1.01 * float(matrices.abs().square().sum(dim=(1, 2)).max())
    kappa = gamma(arithmetic * (n + 2))
    loss = 2 * n * kappa / (1 - kappa) + 8 * UNIT
    eye = torch.eye(n, dtype=matrices.dtype)
    first = 0 if len(gram) == 1 else int(estimate(matrices).argmax())
    top = float(torch.linalg.eigvalsh(gram[first])[-1])
    room = 1.25
    while True:
        mu = top * (1 + room * loss)
        failed = torch.linalg.cholesky_ex(mu * (1 - loss) * eye - gram).info != 0
        if not bool(failed.any()):
            break
        higher = float(torch.linalg.eigvalsh(gram[failed])[:, -1].max())
        room = room if higher > top else 2 * room
        top = max(top, higher)
    squared = mu + gamma(arithmetic * (m + 2)) * frobenius
    try:
        return math.nextafter(math.ldexp(math.sqrt(squared) * (1 + gamma(8)), exponent), math.inf)
    except OverflowError as error:
        raise NumericalError("a weight is too large for a norm in float64") from error


def spectra(matrices: Float[Tensor, "n a b"]) -> Float[Tensor, " n"]:
    """Compute an upper bound of each matrix's largest singular value, proved as in `spectral`; NaN for NaN entries."""
    largest = matrices.abs().amax(dim=(1, 2))
    usable = (largest > 0) & largest.isfinite()
    scale = torch.where(usable, largest / (2 * largest.frexp().mantissa), 1.0)  # a power of two: without rounding
    scaled = torch.where(usable[:, None, None], matrices / scale[:, None, None], 0.0)
    if scaled.shape[1] < scaled.shape[2]:
        scaled = scaled.mT
    m, n = scaled.shape[1:]
    gram = scaled.mT @ scaled
    kappa = gamma(n + 2)
    loss = 2 * n * kappa / (1 - kappa) + 8 * UNIT
    eye = torch.eye(n, dtype=gram.dtype, device=gram.device)
    top = torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0.1)  # an entry is at least 1
    room = torch.full_like(top, 1.25)
    rest = torch.arange(len(top), device=top.device)
    while len(rest):
        mu = (top * (1 + room * loss) * (1 - loss))[rest]
        failed = torch.linalg.cholesky_ex(mu[:, None, None] * eye - gram[rest]).info != 0
        rest = rest[failed]
        room[rest] *= 2
    squared = top * (1 + room * loss) + gamma(m + 2) * 1.01 * scaled.square().sum(dim=(1, 2))
    bound = scale * squared.sqrt() * (1 + gamma(16))
    return torch.where(usable, bound, largest)
