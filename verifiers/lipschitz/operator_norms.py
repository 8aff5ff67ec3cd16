r"""Upper bounds of the operator norms of linear maps, proved in float64 (Rump, 2006: verified Cholesky).

Power iteration and Lanczos estimate from below, and a computed singular value is an estimate, too. Here it is only a
guess. A completed Cholesky factorisation of $(\mu - c) I - A^* A$ proves $\|A\|_2^2 \leq \mu$, where c exceeds the
effect of rounding on the factorisation (Rump, BIT 46, 2006). Sums of nonnegative terms are raised by their rounding
error $\gamma_k = k u / (1 - k u)$ (Higham, 2002, Lemma 3.1), which holds in any order of summation.

A convolution is bounded on a torus; see `torus`. A selection, and a matrix along one axis, have the norms of their
parts. The norm of a transpose from p to q is that of the map itself between the dual exponents.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import reduce, wraps
from typing import Any
from weakref import WeakKeyDictionary

import scipy.sparse
import torch
from jaxtyping import Float
from torch import Tensor

from certbench.errors import UnsupportedError
from certbench.networks.image_maps import Convolution, Separable
from certbench.networks.maps import Dense, Scale
from certbench.networks.structured_maps import Along, Select, Sparse, Transposed
from certbench.numerics.rounding import TINY, dual, gamma, lengths, longest, outward, product, total
from certbench.numerics.sparse import row_lengths, spectral_bound
from certbench.numerics.spectral import DENSE, SIDE, spectral
from certbench.verifiers.lipschitz.torus import grouped, refuse_overlaps, together, torus_norm

Normed = Dense | Scale | Convolution | Separable | Select | Sparse | Along | Transposed
"""Linear maps whose norms are bounded here."""


def _once(norm: Callable[[Any], float]) -> Callable[[Normed], float]:
    """Compute a norm once for each map."""
    known: WeakKeyDictionary[Normed, float] = WeakKeyDictionary()

    @wraps(norm)
    def remembered(part: Normed) -> float:
        if part not in known:
            known[part] = norm(part)
        return known[part]

    return remembered


def norm(part: Normed, s: float, r: float) -> float:
    """Return an upper bound of the norm from s to r; how the features are arranged does not matter."""
    if s == 1:
        return column_norm(part, r)
    if r == math.inf:
        return row_norm(part, dual(s))
    if r == 2:
        return spectral_norm(part) if s == 2 else box_norm(part)
    bound = product(identity_norm(2.0, 1.0, part.outputs), norm(part, s, 2.0))
    if not isinstance(part, Select | Sparse | Along | Transposed):
        return bound
    if s == 2:
        return min(bound, box_norm(turned(part)))
    return min(bound, longest(spread(part, _ones(part)).flatten(1), 1.0))


def identity_norm(s: float, r: float, size: int) -> float:
    r"""Return $\max \|x\|_r / \|x\|_s = n^{\max(0, 1/r - 1/s)}$ over vectors of this size."""
    power = max(0.0, 1 / r - 1 / s)
    return 1.0 if power == 0 or size == 1 else size**power * (1 + gamma(4))


def turned(part: Normed) -> Normed:
    """Return the transpose, as a member of its kind where there is one.

    Raises:
        UnsupportedError: the transpose of a transpose is a map whose norms are not bounded here.
    """
    match part:
        case Transposed():
            if not isinstance(part.part, Normed):
                raise UnsupportedError(f"there is no bound here of the norm of a transposed {type(part.part).__name__}")
            return part.part
        case Scale():
            return part
        case Dense():
            return _dense_turned(part)
        case Separable():
            return Separable(part.channels, _dense_turned(part.vertical), _dense_turned(part.horizontal))
        case Sparse():
            return Sparse(part.columns, None, part.entry_roundings)
        case Along():
            return Along(part.weight.mT, part.outer, part.inner, None, part.entry_roundings)
        case Select() | Convolution():
            return Transposed(part)


def _dense_turned(part: Dense) -> Dense:
    magnitude = None if part.magnitude is None else part.magnitude.T
    return Dense(part.weight.T, magnitude, None, part.entry_roundings)


def row_norm(part: Normed, q: float) -> float:
    """Return the largest q-norm of a row, exact up to rounding: the norm from the dual of q to inf."""
    match part:
        case Scale():
            return spectral_norm(part)
        case Dense():
            return longest(part.entries, q)
        case Convolution():
            return longest(together(part, 2), q)
        case Separable():
            return reduce(product, (row_norm(factor, q) for factor in part.factors))
        case Select():
            return 1.0 if bool(part.counts.any()) else 0.0
        case Sparse():
            return float(row_lengths(_entries(part), q).max())
        case Along():
            return longest(_along_entries(part).flatten(0, 1), q)
        case Transposed():
            return column_norm(turned(part), q)


def column_norm(part: Normed, r: float) -> float:
    """Return the largest r-norm of a column, exact up to rounding: the norm from 1 to r."""
    match part:
        case Scale():
            return spectral_norm(part)
        case Dense():
            return longest(part.entries.T, r)
        case Convolution():
            return longest(together(part, 1), r)
        case Separable():
            return reduce(product, (column_norm(factor, r) for factor in part.factors))
        case Select():
            return _repetitions(int(part.counts.max()), r)
        case Sparse() | Along() | Transposed():
            return row_norm(turned(part), r)


@_once
def spectral_norm(part: Normed) -> float:
    """Return the norm from 2 to 2, exact up to rounding; for a convolution with zero padding, an upper bound."""
    match part:
        case Scale():
            return longest(part.entries.reshape(1, -1), math.inf)
        case Dense():
            return total(spectral(part.weight[None]), _error_norm(part))
        case Convolution():
            return torus_norm(part)
        case Separable():
            return reduce(product, (spectral_norm(factor) for factor in part.factors))
        case Select():  # the columns are orthogonal
            return _repetitions(int(part.counts.max()), 2.0)
        case Sparse():
            if (dense := _written_out(part)) is not None:
                return spectral_norm(dense)
            matrix = part.sparse()
            if part.entry_roundings == 0:
                return spectral_bound(matrix)
            return total(spectral_bound(matrix, gamma(part.entry_roundings + 2)), product(TINY, matrix.nnz))
        case Along():
            return total(spectral(part.weight), longest(part.error.flatten(1), 2.0))
        case Transposed():
            return spectral_norm(turned(part))


@_once
def box_norm(part: Normed) -> float:
    r"""Bound the norm from inf to 2. For a selection, and for what is none but has no negative entries, it is exact.

    It is NP-hard for a matrix; there the bound is the least of three upper bounds: $\sqrt n \|A\|_2$; $\||A| 1\|_2$;
    and $\|A S^{-1}\|_2 \|s\|_2$ with $S = \operatorname{diag}(s)$, which holds for every s > 0 and is used with
    $s_i^2 = \sum_j |A^T A|_{ij}$, or with one s for each channel of a convolution.
    """
    match part:
        case Scale():
            return longest(part.entries.reshape(1, -1), 2.0)
        case Dense():
            bounds = [
                product(identity_norm(math.inf, 2.0, part.inputs), spectral_norm(part)),
                longest(lengths(part.entries, 1.0)[None], 2.0),
            ]
            if part.inputs <= 2 * SIDE:
                s = column_scales(part.weight)
                scaled = part.weight / s
                rounding = gamma(1) * longest(scaled.abs().reshape(1, -1), 2.0)
                bound = product(total(spectral(scaled[None]), rounding), longest(s[None], 2.0))
                bounds.append(total(bound, product(identity_norm(math.inf, 2.0, part.inputs), _error_norm(part))))
            return min(bounds)
        case Convolution():
            refuse_overlaps(part)
            s = lengths(grouped(part, part.entries).transpose(1, 2).flatten(2).flatten(0, 1), 2.0) ** 0.75  # judged
            s = s.clamp(min=max(1e-8 * float(s.max()), TINY))
            kernel = grouped(part, part.kernel) / s.reshape(part.groups, 1, -1, *[1] * part.axes)
            relative = replace(part, kernel=kernel.flatten(0, 1), entry_roundings=part.entry_roundings + 1)
            pixels = math.prod(part.before[1:])
            return min(
                product(identity_norm(math.inf, 2.0, part.inputs), spectral_norm(part)),
                product(identity_norm(math.inf, 2.0, pixels), product(spectral_norm(relative), longest(s[None], 2.0))),
                longest(spread(part, _ones(part)).flatten(1), 2.0),
            )
        case Separable():  # without negative entries along the axes it is the product, too
            return reduce(product, (box_norm(factor) for factor in part.factors))
        case Select():
            return _repetitions(int(part.counts.sum()), 2.0)
        case Along():
            blocks = [[box_norm(Dense(block, None, None, part.entry_roundings)) for block in part.weight]]
            all_blocks = longest(torch.tensor(blocks, dtype=torch.float64), 2.0)
            return product(identity_norm(math.inf, 2.0, part.outer * part.inner), all_blocks)
        case Sparse() | Transposed():
            member = turned(turned(part))
            if not isinstance(member, Sparse | Transposed):
                return box_norm(member)
            if (dense := _written_out(member)) is not None:
                return box_norm(dense)
            return min(
                product(identity_norm(math.inf, 2.0, part.inputs), spectral_norm(part)),
                longest(spread(part, _ones(part)).flatten(1), 2.0),
            )


def column_scales(matrix: Float[Tensor, "_out _in"]) -> Float[Tensor, " _in"]:
    r"""Return scales of the columns of A for its norm from inf to 2: $s_i^2 = \sum_j |A^T A|_{ij}$."""
    s = (matrix.T @ matrix).abs().sum(dim=1).sqrt()
    return s.clamp(min=max(1e-8 * float(s.max()), TINY))


def spread(part: Normed, chords: Float[Tensor, "d ..."]) -> Float[Tensor, "d ..."]:
    """Apply the map with the moduli of its entries to d nonnegative inputs, rounded up."""
    flat = chords.flatten(1)
    match part:
        case Scale():
            moved = outward(flat * part.entries.flatten(), 1)
        case Dense():
            moved = outward(flat @ part.entries.T, part.inputs + 1)
        case Convolution():
            moved = outward(replace(part, kernel=part.entries).forward(flat), part.kernel[0].numel() + 1)
        case Separable():
            moved = part.along(flat, tuple(factor.inputs for factor in part.factors), spread)
        case Select():
            moved = part.forward(flat)
        case Sparse():
            moved = outward(Sparse.of(_entries(part)).forward(flat), part.roundings + 2)
        case Along():
            moved = outward(replace(part, weight=_along_entries(part)).forward(flat), part.roundings)
        case Transposed():
            moved = _spread_back(turned(part), flat)
    return moved.reshape(len(chords), *part.shape)


def _spread_back(part: Normed, flat: Float[Tensor, "d outputs"]) -> Float[Tensor, "d inputs"]:
    """Apply the transpose with the moduli of the entries to nonnegative numbers, rounded up."""
    match part:
        case Select():
            return outward(part.transpose(flat), part.transposed_roundings)
        case Convolution():
            return outward(replace(part, kernel=part.entries).transpose(flat), part.transposed_roundings)
        case _:
            return spread(turned(part), flat).flatten(1)


def _ones(part: Normed) -> Float[Tensor, "1 inputs"]:
    return torch.ones(1, part.inputs, dtype=torch.float64)


def _repetitions(times: int, r: float) -> float:
    """Return the r-norm of so many ones, rounded up."""
    return identity_norm(math.inf, r, times) if times else 0.0


def _written_out(part: Sparse | Transposed) -> Dense | None:
    """Return a small map as a matrix, for which the bounds are tighter; None for a large one."""
    if min(part.inputs, part.outputs) > SIDE or part.inputs * part.outputs > DENSE:
        return None
    inner = turned(part) if isinstance(part, Transposed) else part
    if isinstance(inner, Convolution):
        refuse_overlaps(inner)
    roundings = 0 if isinstance(inner, Select | Transposed) else inner.entry_roundings
    return Dense(part.matrix().contiguous(), None, part.shape, roundings)


def _entries(part: Sparse) -> scipy.sparse.csr_matrix:
    """Return upper bounds of the exact moduli, but for one rounding."""
    entries = abs(part.sparse())
    if part.entry_roundings:
        entries.data = entries.data * (1 + gamma(part.entry_roundings + 4)) + TINY
    return entries


def _along_entries(part: Along) -> Float[Tensor, "blocks out in"]:
    """Return upper bounds of the exact moduli, but for one rounding."""
    return part.weight.abs() + part.error


@_once
def _error_norm(part: Dense) -> float:
    return longest(part.error.reshape(1, -1), 2.0) if part.entry_roundings else 0.0
