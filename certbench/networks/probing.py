"""Linear maps from functions of one sample that are known to be linear: they are applied to unit vectors."""

import math
from collections.abc import Callable

import scipy.sparse
import torch
from torch import Tensor

from certbench.errors import UnsupportedError
from certbench.networks.maps import DENSE_LIMIT, Dense, Map, unit_vectors
from certbench.networks.structured_maps import Select, Sparse

Apply = Callable[[Tensor], Tensor]
"""Function from the features of one sample, without a batch axis, to features."""

FULL = 0.25
"""Smallest part of the entries that are not 0, from which on a matrix is stored with its zeros. A judgement."""


@torch.no_grad()
def selection(apply: Apply, before: tuple[int, ...], device: torch.device | None = None) -> Select:
    """Return the map of a function whose every output is one input, or 0: a view, a permutation, an index, padding.

    Args:
        apply: the function. It is given numbers in float64.
        before: shape of the features before it.
        device: where the map's index shall be.

    Raises:
        UnsupportedError: some output is neither one input nor 0.
    """
    size = math.prod(before)
    found = apply(torch.arange(1, size + 1, dtype=torch.float64, device=device).reshape(before))
    index = found.flatten().to(torch.int64) - 1
    probe = _probes(size, device)[1]
    part = Select(index, size, tuple(found.shape))
    if not bool((found.flatten() == index + 1).all()) or not bool(((index >= -1) & (index < size)).all()):
        raise UnsupportedError("has outputs that are neither one input nor 0")
    if not torch.equal(apply(probe.reshape(before)).flatten(), part.forward(probe[None])[0]):
        raise UnsupportedError("picks other inputs, or changes them, when their numbers change")
    return part


@torch.no_grad()
def linear_map(
    apply: Apply,
    before: tuple[int, ...],
    after: tuple[int, ...],
    roundings: int = 0,
    channels: int = 1,
    device: torch.device | None = None,
) -> Map:
    """Return the map of a linear function, as a matrix or a sparse matrix.

    The function is applied to all unit vectors, some at a time. This takes a time that is quadratic in the features.
    If it treats the channels alike and apart, give one of them.

    The entries are those that the function computes in float64. `roundings` says how far those of another precision are
    from them, relative to themselves. For an interpolation no number does: its weights are differences of positions.
    In float32 a small one may be off by its own size. Such a program has no bound of its rounding here.

    Args:
        apply: the function of one sample. `torch.func.vmap` has to accept it.
        before: shape of the features before it.
        after: shape of the features behind it.
        roundings: number of roundings of an entry that the function computes.
        channels: number of channels; the function is that of one of them, and the map's shape is `(channels, *after)`
            unless it is 1.
        device: where the function computes, and where the map's entries shall be.

    Raises:
        UnsupportedError: the function is not linear, or gives features of another shape.
    """
    inputs, outputs = math.prod(before), math.prod(after)

    def images(vectors: Tensor) -> Tensor:
        found = torch.func.vmap(apply)(vectors.reshape(-1, *before))
        if tuple(found.shape[1:]) != after:
            raise UnsupportedError(f"gives features of shape {tuple(found.shape[1:])} instead of {after}")
        return found.reshape(-1, outputs).to(torch.float64)

    probes = _probes(inputs, device)
    if bool((images(torch.zeros_like(probes[:1])) != 0).any()):
        raise UnsupportedError("is not linear: it gives other numbers than 0 for 0")
    parts = [
        scipy.sparse.csr_matrix(images(some).cpu().numpy())
        for some in unit_vectors(inputs, max(1, 4 * DENSE_LIMIT // max(inputs, outputs)), probes.device)
    ]
    matrix = scipy.sparse.csr_matrix(scipy.sparse.vstack(parts).T)
    one = Sparse.of(matrix, after, roundings, device)
    allowed = 1e-9 * one.absolute().forward(probes.abs()) + 1e-300
    if not bool(((images(probes) - one.forward(probes)).abs() <= allowed).all()):
        raise UnsupportedError("is not linear: it does not add up from its values at unit vectors")
    if channels > 1:
        matrix = scipy.sparse.csr_matrix(scipy.sparse.kron(scipy.sparse.eye(channels), matrix))
        after = (channels, *after)
    if matrix.shape[0] * matrix.shape[1] > min(DENSE_LIMIT, matrix.nnz / FULL):
        return Sparse.of(matrix, after, roundings, device)
    return Dense(torch.as_tensor(matrix.toarray(), device=device), None, after, roundings)


def _probes(size: int, device: torch.device | None) -> Tensor:
    """Draw three vectors of different lengths."""
    drawn = torch.randn(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (drawn * torch.tensor([[1e-3], [1.0], [1e6]], dtype=torch.float64)).to(device)
