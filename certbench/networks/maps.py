"""Linear maps between the layers of a network: one family, for bounds, for norms and for solvers.

`image_maps` holds the members for images: convolutions, and matrices along each axis. `structured_maps` holds
selections, sparse matrices, one matrix along one axis, and transposes. `probing` makes members from functions.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import scipy.sparse
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from certbench.numerics.rounding import TINY, gamma

DENSE_LIMIT = 2**20
"""Largest number of entries of a map that is written as one matrix. A judgement: on the 8x8 maps of the digits matrices
are faster than convolutions; on MNIST they are too large."""


class Map(ABC):
    """A linear map in float64, from flat vectors to flat vectors, for features of any shape."""

    @property
    @abstractmethod
    def inputs(self) -> int:
        """Number of input features."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the output features."""

    @property
    def outputs(self) -> int:
        """Number of output features."""
        return math.prod(self.shape)

    @property
    @abstractmethod
    def roundings(self) -> int:
        """Maximum number of roundings of one output, for any order in which its products are summed."""

    @property
    @abstractmethod
    def transposed_roundings(self) -> int:
        """Maximum number of roundings of one entry of `transpose`, for any order in which its products are summed."""

    @property
    @abstractmethod
    def products(self) -> int:
        """Number of multiplications for one vector, in either direction: it predicts times."""

    @property
    def unfolded(self) -> int:
        """Largest number of entries that torch holds beside the results for one vector, in either direction."""
        return 0

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the entries."""

    @abstractmethod
    def forward(self, h: Float[Tensor, "m inputs"]) -> Float[Tensor, "m outputs"]:
        """Return W h, row by row."""

    @abstractmethod
    def transpose(self, a: Float[Tensor, "m outputs"]) -> Float[Tensor, "m inputs"]:
        """Return a W, row by row."""

    @abstractmethod
    def absolute(self) -> "Map":
        """Return the map whose entries are the moduli of this one's; for a composition they may be larger."""

    @abstractmethod
    def to(self, dtype: torch.dtype) -> "Map":
        """Return the map in another precision: for searching, never for bounds."""

    def rows(self, index: Int64[Tensor, " m"]) -> Float[Tensor, "m inputs"]:
        """Return some of the rows."""
        one = torch.zeros(len(index), self.outputs, dtype=torch.float64, device=self.device)
        return self.transpose(one.scatter_(1, index[:, None], 1.0))

    def matrix(self) -> Float[Tensor, "outputs inputs"]:
        """Return all entries as one matrix."""
        eye = torch.eye(min(self.inputs, self.outputs), dtype=torch.float64, device=self.device)
        return self.forward(eye).T if self.inputs <= self.outputs else self.transpose(eye)

    def sparse(self) -> scipy.sparse.csr_matrix:
        """Return all entries as a sparse matrix, as solvers need it."""
        if self.inputs * self.outputs <= DENSE_LIMIT:
            return scipy.sparse.csr_matrix(self.matrix().cpu().numpy())
        act, size = (self.forward, self.inputs) if self.inputs <= self.outputs else (self.transpose, self.outputs)
        parts = [
            scipy.sparse.csr_matrix(act(some).cpu().numpy())
            for some in unit_vectors(size, max(1, 4 * DENSE_LIMIT // max(self.inputs, self.outputs)), self.device)
        ]
        rows = scipy.sparse.csr_matrix(scipy.sparse.vstack(parts))
        return scipy.sparse.csr_matrix(rows.T) if self.inputs <= self.outputs else rows


def unit_vectors(
    size: int, step: int, device: torch.device, dtype: torch.dtype = torch.float64
) -> Iterator[Float[Tensor, "some size"]]:
    """Yield the unit vectors in order, `step` at a time."""
    for start in range(0, size, step):
        count = min(step, size - start)
        some = torch.zeros(count, size, dtype=dtype, device=device)
        some[:, start : start + count].fill_diagonal_(1)
        yield some


@dataclass(frozen=True, eq=False)
class Dense(Map):
    """A matrix.

    Attributes:
        weight: the stored entries.
        magnitude: scale of the errors of the entries; None: their moduli.
        features: shape of the output features; None: flat.
        entry_roundings: the exact entries differ from the stored ones by at most `gamma(entry_roundings) magnitude`.
    """

    weight: Float[Tensor, "outputs inputs"]
    magnitude: Float[Tensor, "outputs inputs"] | None = None
    features: tuple[int, ...] | None = None
    entry_roundings: int = 0

    @property
    def inputs(self) -> int:
        """Number of columns."""
        return self.weight.shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape `features`, or the number of rows."""
        return (self.weight.shape[0],) if self.features is None else self.features

    @property
    def outputs(self) -> int:
        """Number of rows."""
        return self.weight.shape[0]

    @property
    def roundings(self) -> int:
        """Roundings of the product, of the sums, and of an entry."""
        return self.weight.shape[1] + 1 + self.entry_roundings

    @property
    def transposed_roundings(self) -> int:
        """Roundings of the product, of the sums, and of an entry."""
        return self.weight.shape[0] + 1 + self.entry_roundings

    @property
    def products(self) -> int:
        """One for each entry."""
        return self.weight.numel()

    @property
    def device(self) -> torch.device:
        """The device of the weight."""
        return self.weight.device

    @property
    def moduli(self) -> Float[Tensor, "outputs inputs"]:
        """Scale of the errors of the entries: `magnitude`, or their moduli."""
        return self.weight.abs() if self.magnitude is None else self.magnitude

    @cached_property
    def error(self) -> Float[Tensor, "outputs inputs"]:
        """Upper bounds of the distance to the exact entries."""
        if self.entry_roundings == 0:
            return torch.zeros((), dtype=torch.float64).expand_as(self.weight)
        return gamma(self.entry_roundings + 2) * self.moduli + TINY

    @cached_property
    def entries(self) -> Float[Tensor, "outputs inputs"]:
        """Upper bounds of the exact moduli, but for one rounding."""
        return self.weight.abs() + self.error

    def forward(self, h: Float[Tensor, "m inputs"]) -> Float[Tensor, "m outputs"]:
        """Multiply each row by the matrix."""
        return h @ self.weight.T

    def transpose(self, a: Float[Tensor, "m outputs"]) -> Float[Tensor, "m inputs"]:
        """Multiply each row by the transposed matrix."""
        return a @ self.weight

    def rows(self, index: Int64[Tensor, " m"]) -> Float[Tensor, "m inputs"]:
        """Return some of the rows."""
        return self.weight[index]

    def absolute(self) -> "Dense":
        """Return |W|."""
        return replace(self, weight=self.weight.abs())

    def to(self, dtype: torch.dtype) -> "Dense":
        """Cast the weight."""
        return replace(
            self,
            weight=self.weight.to(dtype),
            magnitude=None if self.magnitude is None else self.magnitude.to(dtype),
        )

    def matrix(self) -> Float[Tensor, "outputs inputs"]:
        """Return the weight."""
        return self.weight

    def sparse(self) -> scipy.sparse.csr_matrix:
        """Return the weight."""
        return scipy.sparse.csr_matrix(self.weight.cpu().numpy())


@dataclass(frozen=True, eq=False)
class Scale(Map):
    """A diagonal matrix: a normalisation, or the identity.

    Attributes:
        diagonal: one stored factor per feature, in the features' shape.
        entry_roundings: each factor is off by at most `gamma(entry_roundings)` of itself.
    """

    diagonal: Float[Tensor, "..."]
    entry_roundings: int = 0

    @property
    def inputs(self) -> int:
        """Number of features."""
        return self.diagonal.numel()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the features."""
        return tuple(self.diagonal.shape)

    @property
    def roundings(self) -> int:
        """Roundings of a product, or of a quotient whose inverse was rounded here, and of a factor."""
        return self.entry_roundings + 2

    @property
    def transposed_roundings(self) -> int:
        """Both directions multiply once."""
        return self.roundings

    @property
    def products(self) -> int:
        """One for each feature."""
        return self.diagonal.numel()

    @property
    def device(self) -> torch.device:
        """The device of the diagonal."""
        return self.diagonal.device

    @cached_property
    def entries(self) -> Float[Tensor, "..."]:
        """Upper bounds of the exact moduli."""
        return self.diagonal.abs() * (1 + gamma(self.entry_roundings + 2))

    def forward(self, h: Float[Tensor, "m inputs"]) -> Float[Tensor, "m outputs"]:
        """Multiply entry by entry."""
        return h * self.diagonal.flatten()

    def transpose(self, a: Float[Tensor, "m outputs"]) -> Float[Tensor, "m inputs"]:
        """Multiply entry by entry."""
        return a * self.diagonal.flatten()

    def absolute(self) -> "Scale":
        """Return the map of the factors' moduli."""
        return replace(self, diagonal=self.diagonal.abs())

    def to(self, dtype: torch.dtype) -> "Scale":
        """Cast the diagonal."""
        return replace(self, diagonal=self.diagonal.to(dtype))


@dataclass(frozen=True, eq=False)
class Chain(Map):
    """Maps applied one after the other."""

    maps: tuple[Map, ...]

    @property
    def inputs(self) -> int:
        """Number of inputs of the first map."""
        return self.maps[0].inputs

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the outputs of the last map."""
        return self.maps[-1].shape

    @property
    def roundings(self) -> int:
        """Roundings of all maps and of a constant after each, which may be rounded to the program's precision first."""
        return sum(part.roundings + 2 for part in self.maps)

    @property
    def transposed_roundings(self) -> int:
        """Roundings of all transposed maps."""
        return sum(part.transposed_roundings for part in self.maps)

    @property
    def products(self) -> int:
        """Multiplications of all maps."""
        return sum(part.products for part in self.maps)

    @property
    def unfolded(self) -> int:
        """The most of any map, with the vectors between them."""
        return max(part.unfolded + part.inputs + part.outputs for part in self.maps)

    @property
    def device(self) -> torch.device:
        """The device of the first map."""
        return self.maps[0].device

    def forward(self, h: Float[Tensor, "m inputs"]) -> Float[Tensor, "m outputs"]:
        """Apply the maps from first to last."""
        for part in self.maps:
            h = part.forward(h)
        return h

    def transpose(self, a: Float[Tensor, "m outputs"]) -> Float[Tensor, "m inputs"]:
        """Apply the transposed maps from last to first."""
        for part in reversed(self.maps):
            a = part.transpose(a)
        return a

    def absolute(self) -> Map:
        """Return the chain of the parts' moduli, which are no smaller than the moduli of the whole."""
        return Chain(tuple(part.absolute() for part in self.maps))

    def to(self, dtype: torch.dtype) -> "Chain":
        """Cast all parts."""
        return Chain(tuple(part.to(dtype) for part in self.maps))


@dataclass(frozen=True, eq=False)
class Sum(Map):
    """A sum of maps with the same inputs."""

    maps: tuple[Map, ...]

    @property
    def inputs(self) -> int:
        """Number of inputs of each map."""
        return self.maps[0].inputs

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the outputs of each map."""
        return self.maps[0].shape

    @property
    def roundings(self) -> int:
        """Roundings of the part that has most, and of the sums."""
        return max(part.roundings for part in self.maps) + len(self.maps)

    @property
    def transposed_roundings(self) -> int:
        """Roundings of the transposed part that has most, and of the sums."""
        return max(part.transposed_roundings for part in self.maps) + len(self.maps)

    @property
    def products(self) -> int:
        """Multiplications of all maps."""
        return sum(part.products for part in self.maps)

    @property
    def unfolded(self) -> int:
        """The most of any map, with the terms, which are stacked."""
        return max(part.unfolded for part in self.maps) + 2 * len(self.maps) * max(self.inputs, self.outputs)

    @property
    def device(self) -> torch.device:
        """The device of the first map."""
        return self.maps[0].device

    def forward(self, h: Float[Tensor, "m inputs"]) -> Float[Tensor, "m outputs"]:
        """Add up the outputs of the parts."""
        return torch.stack([part.forward(h) for part in self.maps]).sum(dim=0)

    def transpose(self, a: Float[Tensor, "m outputs"]) -> Float[Tensor, "m inputs"]:
        """Add up the outputs of the transposed parts."""
        return torch.stack([part.transpose(a) for part in self.maps]).sum(dim=0)

    def absolute(self) -> Map:
        """Return the sum of the parts' moduli, which are no smaller than the moduli of the whole."""
        return Sum(tuple(part.absolute() for part in self.maps))

    def to(self, dtype: torch.dtype) -> "Sum":
        """Cast all parts."""
        return Sum(tuple(part.to(dtype) for part in self.maps))
