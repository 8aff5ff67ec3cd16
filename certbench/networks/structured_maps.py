"""Linear maps with much structure, members of the family in `maps`: most of their entries are 0, or the same.

The file is long because selections, the most used of them, are also read as grids, and the kinds belong together.
"""

import math
import warnings
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from certbench.networks.maps import Map
from certbench.numerics.rounding import TINY, gamma


@dataclass(frozen=True)
class Grid:
    """Places offset + i_1 s_1 + i_2 s_2 + ... of a vector, in the order of the indices; the last one runs fastest.

    Attributes:
        offset: the first place.
        shape: number of values of each index.
        strides: the steps s; 0 repeats a place. Others never lead to a place twice.
    """

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @staticmethod
    def of(index: Int64[Tensor, " outputs"]) -> "Grid | None":
        """Return the grid whose places are an index; None if there is none with at most `AXES` axes."""
        places = index
        shape, strides = ([1], [1]) if len(index) == 1 else (list[int](), list[int]())
        while len(places) > 1:
            steps = places.diff()
            other = (steps != steps[0]).nonzero()
            count = int(other[0]) + 1 if len(other) else len(places)
            if len(places) % count or len(shape) == AXES:
                return None
            blocks = places.view(-1, count)
            if not bool((blocks - blocks[:, :1] == blocks[:1] - blocks[0, 0]).all()):
                return None
            shape.insert(0, count)
            strides.insert(0, int(steps[0]))
            places = blocks[:, 0]
        once = math.prod(size for size, stride in zip(shape, strides, strict=True) if stride)
        if not len(index) or bool((index < 0).any()) or any(s < 0 for s in strides) or len(set(index.tolist())) != once:
            return None
        return Grid(int(index[0]), tuple(shape), tuple(strides))

    def of_rows(self, h: Float[Tensor, "m inputs"]) -> Float[Tensor, "m ..."]:
        """Return the places of each row, as a view."""
        row, step = h.stride()
        strides = [row, *(step * stride for stride in self.strides)]
        return h.as_strided((len(h), *self.shape), strides, h.storage_offset() + step * self.offset)

    def add(self, found: Float[Tensor, "m inputs"], a: Float[Tensor, "m outputs"]) -> None:
        """Add numbers to the places of each row."""
        repeated = [axis for axis, stride in enumerate(self.strides, 1) if stride == 0]
        parts = a.view(len(a), *self.shape)
        kept = [axis for axis, stride in enumerate(self.strides) if stride]
        once = Grid(self.offset, tuple(self.shape[i] for i in kept), tuple(self.strides[i] for i in kept))
        once.of_rows(found).add_(parts.sum(dim=repeated).view(len(a), *once.shape) if repeated else parts)


AXES = 6
"""Largest number of axes of a grid; more are slow to walk through."""


@dataclass(frozen=True, eq=False)
class Select(Map):
    """Each output is one input, or 0: a slice, a permutation, a repetition, padding, a part of a concatenation.

    Attributes:
        index: for each output the input that it is; -1 for 0.
        length: number of inputs.
        features: shape of the output features; None: flat.
    """

    index: Int64[Tensor, " outputs"]
    length: int
    features: tuple[int, ...] | None = None

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return self.length

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape `features`, or the number of outputs."""
        return (len(self.index),) if self.features is None else self.features

    @property
    def roundings(self) -> int:
        """Nothing is computed, so nothing is rounded."""
        return 0

    @cached_property
    def counts(self) -> Int64[Tensor, " inputs"]:
        """Number of outputs that are each input."""
        return torch.bincount(self.index[self.index >= 0], minlength=self.length)

    @property
    def transposed_roundings(self) -> int:
        """Roundings of the sum over all outputs that are one input."""
        return max(0, int(self.counts.max()) - 1)

    @property
    def products(self) -> int:
        """None; each output is read once, which counts as one."""
        return self.outputs

    @property
    def device(self) -> torch.device:
        """The device of the index."""
        return self.index.device

    @cached_property
    def _holes(self) -> Tensor | None:
        """Say which outputs are 0; None if there is none."""
        holes = self.index < 0
        return holes if bool(holes.any()) else None

    @cached_property
    def _repeated(self) -> tuple[Tensor, Tensor] | None:
        """Return the outputs in the order of the inputs that they are, and these inputs, if all are so equally often.

        Sums are some ten times as fast then as with `index_add`.
        """
        used = self.counts.nonzero().flatten()
        if not len(used) or not bool((self.counts[used] == self.counts[used[0]]).all()):
            return None
        order = self.index.argsort(stable=True)
        return order[int((self.index < 0).sum()) :], used

    @cached_property
    def _grids(self) -> "tuple[tuple[slice, Grid | None], ...] | None":
        """Return the index as grids: the whole, or two halves, of which one may be empty; None if there are no such.

        Grids are read and written without an index, which is some five times as fast.
        """
        half = len(self.index) // 2
        for parts in ([slice(0, len(self.index))], [slice(0, half), slice(half, len(self.index))]):
            found = [None if bool((self.index[part] < 0).all()) else Grid.of(self.index[part]) for part in parts]
            if all(
                grid is not None or bool((self.index[part] < 0).all()) for grid, part in zip(found, parts, strict=True)
            ):
                return tuple(zip(parts, found, strict=True))
        return None

    def forward(self, h: Float[Tensor, "m inputs"]) -> Float[Tensor, "m outputs"]:
        """Pick the inputs."""
        if self._grids is not None and not h.requires_grad:
            if len(self._grids) == 1 and self._grids[0][1] is not None:
                return self._grids[0][1].of_rows(h).clone(memory_format=torch.contiguous_format).flatten(1)
            found = h.new_zeros(len(h), self.outputs)
            for part, grid in self._grids:
                if grid is not None:
                    found[:, part].view(len(h), *grid.shape).copy_(grid.of_rows(h))
            return found
        if self._holes is None:
            return h.index_select(1, self.index)
        return h.index_select(1, self.index.clamp(min=0)).masked_fill(self._holes, 0)

    def transpose(self, a: Float[Tensor, "m outputs"]) -> Float[Tensor, "m inputs"]:
        """Add up what belongs to each input."""
        if self._grids is not None and not a.requires_grad:
            found = a.new_zeros(len(a), self.length)
            for part, grid in self._grids:
                if grid is not None:
                    grid.add(found, a[:, part])
            return found
        if self._repeated is not None:
            order, used = self._repeated
            found = a.index_select(1, order).view(len(a), len(used), len(order) // len(used)).sum(dim=2)
            return found if len(used) == self.length else a.new_zeros(len(a), self.length).index_copy(1, used, found)
        index = self.index
        if self._holes is not None:
            index, a = index[~self._holes], a[:, ~self._holes]
        return a.new_zeros(len(a), self.length).index_add(1, index, a)

    def absolute(self) -> "Select":
        """Return this map: its entries are 0 and 1."""
        return self

    def to(self, dtype: torch.dtype) -> "Select":
        """Return this map: it takes any precision."""
        return self

    def after(self, first: "Select") -> "Select":
        """Return this selection of the outputs of another one."""
        index = torch.where(self.index < 0, -1, first.index[self.index.clamp(min=0)])
        return Select(index, first.length, self.features)

    def sparse(self) -> scipy.sparse.csr_matrix:
        """Return the ones."""
        index = self.index.cpu().numpy()
        starts = np.concatenate([[0], np.cumsum(index >= 0)])
        return scipy.sparse.csr_matrix(
            (np.ones(starts[-1]), index[index >= 0], starts), shape=(len(index), self.length)
        )


@dataclass(frozen=True, eq=False)
class Sparse(Map):
    """A sparse matrix: pooling, interpolation, means and sums over some of the features.

    Attributes:
        weight: the stored entries, in rows (torch's CSR layout).
        features: shape of the output features; None: flat.
        entry_roundings: each entry is off by at most `gamma(entry_roundings)` of itself.
    """

    weight: Float[Tensor, "outputs inputs"]
    features: tuple[int, ...] | None = None
    entry_roundings: int = 0

    @staticmethod
    def of(
        matrix: scipy.sparse.csr_matrix,
        features: tuple[int, ...] | None = None,
        entry_roundings: int = 0,
        device: torch.device | None = None,
    ) -> "Sparse":
        """Make the map of a SciPy matrix of numbers in float64, each at a place of its own."""
        matrix.sort_indices()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a new layout, which is 6 times as fast as COO on a processor
            weight = torch.sparse_csr_tensor(
                torch.as_tensor(matrix.indptr, dtype=torch.int64),
                torch.as_tensor(matrix.indices, dtype=torch.int64),
                torch.as_tensor(matrix.data),
                matrix.shape,
                check_invariants=True,
            )
        return Sparse(weight.to(device), features, entry_roundings)

    @property
    def inputs(self) -> int:
        """Number of columns."""
        return self.weight.shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape `features`, or the number of rows."""
        return (self.weight.shape[0],) if self.features is None else self.features

    @cached_property
    def columns(self) -> Float[Tensor, "inputs outputs"]:
        """The transposed matrix, in rows as well."""
        return self.weight.t().to_sparse_csr()

    @property
    def roundings(self) -> int:
        """Roundings of the product, of the sums in the longest row, and of an entry."""
        return int(self.weight.crow_indices().diff().max()) + 1 + self.entry_roundings

    @property
    def transposed_roundings(self) -> int:
        """Roundings of the product, of the sums in the longest column, and of an entry."""
        return int(self.columns.crow_indices().diff().max()) + 1 + self.entry_roundings

    @property
    def products(self) -> int:
        """One for each entry that is not zero."""
        return int(self.weight.values().numel())

    @property
    def device(self) -> torch.device:
        """The device of the weight."""
        return self.weight.device

    def forward(self, h: Float[Tensor, "m inputs"]) -> Float[Tensor, "m outputs"]:
        """Multiply each row by the matrix."""
        return (self.weight @ h.T).T

    def transpose(self, a: Float[Tensor, "m outputs"]) -> Float[Tensor, "m inputs"]:
        """Multiply each row by the transposed matrix."""
        return (self.columns @ a.T).T

    def absolute(self) -> "Sparse":
        """Return |W|."""
        return replace(self, weight=self.weight.abs())

    def to(self, dtype: torch.dtype) -> "Sparse":
        """Cast the weight."""
        return replace(self, weight=self.weight.to(dtype))

    def matrix(self) -> Float[Tensor, "outputs inputs"]:
        """Return the weight with its zeros."""
        return self.weight.to_dense()

    def sparse(self) -> scipy.sparse.csr_matrix:
        """Return the weight."""
        weight = self.weight.cpu()
        values, columns, starts = weight.values().numpy(), weight.col_indices().numpy(), weight.crow_indices().numpy()
        return scipy.sparse.csr_matrix((values, columns, starts), shape=(self.outputs, self.inputs))


@dataclass(frozen=True, eq=False)
class Along(Map):
    """A matrix along one axis of features of shape (blocks, outer, in, inner); each block has a matrix of its own.

    It is a linear layer on a sequence, a product with a constant matrix on either side or with one per head, a sum or a
    mean over one axis.

    Attributes:
        weight: the stored entries of the matrices; one block for one matrix.
        outer: number of places before the axis, all with the same matrix.
        inner: number of places behind the axis, all with the same matrix.
        features: shape of the output features; None: flat.
        entry_roundings: each entry is off by at most `gamma(entry_roundings)` of itself.
    """

    weight: Float[Tensor, "blocks out in"]
    outer: int = 1
    inner: int = 1
    features: tuple[int, ...] | None = None
    entry_roundings: int = 0

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return self.weight.shape[0] * self.outer * self.weight.shape[2] * self.inner

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape `features`, or the number of outputs."""
        flat = self.weight.shape[0] * self.outer * self.weight.shape[1] * self.inner
        return (flat,) if self.features is None else self.features

    @property
    def roundings(self) -> int:
        """Roundings of the product, of the sums, and of an entry."""
        return self.weight.shape[2] + 1 + self.entry_roundings

    @property
    def transposed_roundings(self) -> int:
        """Roundings of the product, of the sums, and of an entry."""
        return self.weight.shape[1] + 1 + self.entry_roundings

    @property
    def products(self) -> int:
        """One for each entry at each place."""
        return self.weight.numel() * self.outer * self.inner

    @property
    def unfolded(self) -> int:
        """Both vectors with the axis moved to the end."""
        return self.inputs + self.outputs

    @property
    def device(self) -> torch.device:
        """The device of the weight."""
        return self.weight.device

    @cached_property
    def error(self) -> Float[Tensor, "blocks out in"]:
        """Upper bounds of the distance to the exact entries."""
        if self.entry_roundings == 0:
            return torch.zeros_like(self.weight)
        return gamma(self.entry_roundings + 2) * self.weight.abs() + TINY

    def forward(self, h: Float[Tensor, "m inputs"]) -> Float[Tensor, "m outputs"]:
        """Multiply along the axis."""
        parts = h.reshape(len(h), len(self.weight), self.outer, self.weight.shape[2], self.inner)
        return torch.einsum("boi,mbpij->mbpoj", self.weight, parts).flatten(1)

    def transpose(self, a: Float[Tensor, "m outputs"]) -> Float[Tensor, "m inputs"]:
        """Multiply along the axis by the transposed matrices."""
        parts = a.reshape(len(a), len(self.weight), self.outer, self.weight.shape[1], self.inner)
        return torch.einsum("boi,mbpoj->mbpij", self.weight, parts).flatten(1)

    def absolute(self) -> "Along":
        """Return the map of the moduli."""
        return replace(self, weight=self.weight.abs())

    def to(self, dtype: torch.dtype) -> "Along":
        """Cast the weight."""
        return replace(self, weight=self.weight.to(dtype))

    def sparse(self) -> scipy.sparse.csr_matrix:
        """Return the Kronecker product of each block."""
        before, behind = scipy.sparse.eye(self.outer), scipy.sparse.eye(self.inner)
        blocks = [
            scipy.sparse.kron(before, scipy.sparse.kron(scipy.sparse.csr_matrix(block), behind))
            for block in self.weight.cpu().numpy()
        ]
        return scipy.sparse.csr_matrix(scipy.sparse.block_diag(blocks))


@dataclass(frozen=True, eq=False)
class Transposed(Map):
    """The transpose of a map.

    A transposed convolution is the transpose of the convolution with the same kernel, from its outputs to its inputs.

    Attributes:
        part: the map that is transposed.
        features: shape of the output features; None: flat.
    """

    part: Map
    features: tuple[int, ...] | None = None

    @property
    def inputs(self) -> int:
        """Number of outputs of the part."""
        return self.part.outputs

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape `features`, or the number of inputs of the part."""
        return (self.part.inputs,) if self.features is None else self.features

    @property
    def roundings(self) -> int:
        """Roundings of the part's transpose."""
        return self.part.transposed_roundings

    @property
    def transposed_roundings(self) -> int:
        """Roundings of the part."""
        return self.part.roundings

    @property
    def products(self) -> int:
        """Count those of the map itself."""
        return self.part.products

    @property
    def unfolded(self) -> int:
        """The same as of the map itself."""
        return self.part.unfolded

    @property
    def device(self) -> torch.device:
        """The device of the part."""
        return self.part.device

    def forward(self, h: Float[Tensor, "m inputs"]) -> Float[Tensor, "m outputs"]:
        """Apply the transposed part."""
        return self.part.transpose(h)

    def transpose(self, a: Float[Tensor, "m outputs"]) -> Float[Tensor, "m inputs"]:
        """Apply the part."""
        return self.part.forward(a)

    def absolute(self) -> Map:
        """Return the transpose of the part's moduli."""
        return replace(self, part=self.part.absolute())

    def to(self, dtype: torch.dtype) -> "Transposed":
        """Cast the part."""
        return replace(self, part=self.part.to(dtype))

    def matrix(self) -> Float[Tensor, "outputs inputs"]:
        """Return the transposed matrix of the part."""
        return self.part.matrix().T

    def sparse(self) -> scipy.sparse.csr_matrix:
        """Return the transposed matrix of the part."""
        return self.part.sparse().T.tocsr()
