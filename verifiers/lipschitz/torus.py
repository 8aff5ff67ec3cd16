r"""Spectral norms of convolutions, from tori that they are sections of.

A convolution is bounded on a torus. Axis by axis, tap a reads input $s t + a d - p$ for output t. Writing
$a d - p = s q + \rho$ with $0 \leq \rho < s$ turns stride s into stride 1 between s phases of the input. With zero
padding that is a section of the convolution on every torus long enough that no tap wraps around onto another,
$N \geq \max(o + q_{\max}, \lceil n / s \rceil - q_{\min})$ for o outputs; the torus of the input, N = n, is too short.
On a torus the norm is the largest over its frequencies $\theta$ of the norm of the symbol
$H(\theta) = \sum_a K_a e^{-i \theta q_a}$, a small matrix of channels and phases (Sedghi et al., 2019). All of this
also holds if going round the torus changes the sign, which moves the frequencies by half a step.
"""

import itertools
import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from certbench.errors import UnsupportedError
from certbench.networks.image_maps import Convolution
from certbench.numerics.rounding import gamma, longest, total
from certbench.numerics.spectral import DENSE, estimate, spectral


def refuse_overlaps(part: Convolution) -> None:
    """Refuse a convolution round a circle where taps meet, or whose outputs go round more than once.

    Raises:
        UnsupportedError: the padding is circular, and the map is no whole number of strides or no longer than
            the kernel.
    """
    if not part.circular:
        return
    sizes = zip(part.before[1:], part.stride, part.after[1:], part.kernel.shape[2:], part.dilation, strict=True)
    for n, s, o, k, d in sizes:
        if n % s or o * s > n or d * (k - 1) + 1 > n:
            raise UnsupportedError(f"has no bound here with circular padding of {n} pixels, {k} taps and stride {s}")


def torus_norm(part: Convolution) -> float:
    r"""Return the spectral norm of a convolution on a torus.

    For circular padding it is exact, if no output is left out. Otherwise it is taken from the torus with the smallest
    estimate. The torus may be twisted along either axis. With zeros around it a map cannot be constant. Twists exclude
    constant maps, which a kernel that blurs amplifies most.

    A computed symbol is off by at most $\gamma_{4 k^2 + \ldots} \sum_a |K_a|$: complex arithmetic, and waves
    that are off by less than 32 u each.
    """
    refuse_overlaps(part)
    window = part.kernel.shape[2:]
    blur = gamma(4 * (math.prod(window) + sum(window)) + 32 * part.axes + 8)
    sums, phases = blur * part.entries + part.error, [_taps(part, axis)[1] for axis in range(part.axes)]
    blurred = _each_axis(part, sums, phases, "goc{sets}")
    twists = [(0,) if part.circular or len(_waves(part, axis, 0)) == 1 else (0, 1) for axis in range(part.axes)]
    best = min(
        itertools.product(*twists),
        key=lambda twist: max(float(estimate(symbols).max()) for symbols in _symbols(part, *twist)),
    )
    return total(max(spectral(symbols) for symbols in _symbols(part, *best)), longest(blurred.flatten(1), 2.0))


def _each_axis(part: Convolution, kernel: Tensor, by: list[Tensor], result: str) -> Tensor:
    """Multiply the taps along each axis by a matrix (sets, taps); `result` gives the order of the axes behind it."""
    taps, sets = "abd"[: part.axes], "rst"[: part.axes]
    each = ",".join(map("".join, zip(sets, taps, strict=True)))
    ordered: Tensor = torch.einsum(
        f"goc{taps},{each}->{result.format(sets=sets, taps=taps)}", grouped(part, kernel), *by
    )
    return ordered


def grouped(part: Convolution, kernel: Tensor) -> Float[Tensor, "groups out_channels in_channels ..."]:
    """Split a kernel into groups."""
    return kernel.reshape(part.groups, -1, *kernel.shape[1:])


def _taps(part: Convolution, axis: int) -> tuple[Tensor, Float[Tensor, "phases taps"]]:
    """Return the shift q of each tap, and the phase that it reads."""
    stride = part.stride[axis]
    offset = torch.arange(part.kernel.shape[2 + axis]) * part.dilation[axis] - part.padding[axis]
    phase = offset.remainder(stride)
    return (offset - phase) // stride, (phase == torch.arange(stride)[:, None]).to(torch.float64)


def _waves(part: Convolution, axis: int, twist: int) -> Inexact[Tensor, "frequencies phases taps"]:
    r"""Return $e^{-i \theta q}$, $\theta = (2 k + \text{twist}) \pi / N$; on the last axis half, by symmetry."""
    shift, phase = _taps(part, axis)
    n, s, o = part.before[1 + axis], part.stride[axis], part.after[1 + axis]
    torus = n // s if part.circular else max(o + max(int(shift.max()), 0), -(-n // s) - min(int(shift.min()), 0))
    if bool((shift == shift[0]).all()):
        torus = 1  # all symbols are the same up to a phase
    frequency = 2 * torch.arange(torus if axis < part.axes - 1 else torus // 2 + 1) + twist
    turn = (frequency[:, None] * shift + torus).remainder(2 * torus) - torus
    angle = turn.to(torch.float64) * (-math.pi / torus)
    return torch.polar(torch.ones_like(angle), angle)[:, None] * phase


def _symbols(part: Convolution, *twist: int) -> Iterator[Inexact[Tensor, "batch m n"]]:
    """Yield the symbol at every frequency and in every group, as many at a time as memory allows."""
    kernel = grouped(part, part.kernel).to(torch.complex128)
    first, *others = (_waves(part, axis, twist[axis]) for axis in range(part.axes))
    entries = math.prod((*part.kernel.shape[:2], *part.stride, *(len(waves) for waves in others)))
    taps, phases, waves = "abd"[: part.axes], "rst"[: part.axes], "uvw"[: part.axes]
    each = ",".join(map("".join, zip(waves, phases, taps, strict=True)))
    for some in torch.split(first, max(1, DENSE // entries)):
        symbol = torch.einsum(f"goc{taps},{each}->{waves}goc{phases}", kernel, some, *others)
        yield symbol.flatten(part.axes + 2).flatten(0, part.axes)


def together(part: Convolution, where: int) -> Float[Tensor, "n k"]:
    """Return the moduli of the entries of the fullest columns (where = 1) or rows (2) of the matrix, one in each row.

    Raises:
        UnsupportedError: as `refuse_overlaps`.
    """
    refuse_overlaps(part)
    sets = [_meet(part, axis, where) for axis in range(part.axes)]
    met = _each_axis(part, part.entries, sets, "gc{sets}o{taps}" if where == 1 else "go{sets}c{taps}")
    return met.flatten(2 + part.axes).flatten(0, 1 + part.axes)


def _meet(part: Convolution, axis: int, where: int) -> Float[Tensor, "sets taps"]:
    """Return the largest sets of taps that meet in one input (where = 1) or in one output (2)."""
    n = part.before[1 + axis]
    tap, output = torch.arange(part.kernel.shape[2 + axis]), torch.arange(part.after[1 + axis])
    read = output * part.stride[axis] + (tap * part.dilation[axis] - part.padding[axis])[:, None]
    read = read.remainder(n) if part.circular else read
    incidence = (read[..., None] == torch.arange(n)).to(torch.float64)  # whether a tap reads an input for an output
    sets: Tensor = torch.unique(incidence.sum(where).T, dim=0)
    largest: Tensor = (sets[:, None] <= sets).all(2).sum(1) == 1
    return sets[largest]
