"""Affine maps between the layers of a network."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import scipy.sparse
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

DENSE_LIMIT = 2**20
"""Largest number of entries of a map that is written as one matrix. A judgement: on the 8x8 maps of the digits matrices
are faster than convolutions; on MNIST they are too large."""


class Map(ABC):
    """A linear map between flat vectors, in float64."""

    inputs: int
    outputs: int
    roundings: int
    """Maximum number of roundings of one output, for any order in which its products are summed."""

    @abstractmethod
    def forward(self, h: Float[Tensor, "m inputs"]) -> Float[Tensor, "m outputs"]:
        """Compute W h, row by row."""

    @abstractmethod
    def transpose(self, a: Float[Tensor, "m outputs"]) -> Float[Tensor, "m inputs"]:
        """Compute a W, row by row."""

    @abstractmethod
    def absolute(self) -> "Map":
        """Return the map whose entries are the moduli of this one's; for a composition they may be larger."""

    def matrix(self) -> Float[Tensor, "outputs inputs"]:
        """Return all entries as one matrix."""
        eye = torch.eye(min(self.inputs, self.outputs), dtype=torch.float64)
        return self.forward(eye).T if self.inputs <= self.outputs else self.transpose(eye)

    def sparse(self) -> scipy.sparse.csr_matrix:
        """Return all entries as a sparse matrix, as solvers need it."""
        return scipy.sparse.csr_matrix(self.matrix().cpu().numpy())


@dataclass(frozen=True, eq=False)
class Dense(Map):
    """A matrix."""

    weight: Float[Tensor, "outputs inputs"]

    @property
    def inputs(self) -> int:  # type: ignore[override]
        """Number of columns."""
        return self.weight.shape[1]

    @property
    def roundings(self) -> int:  # type: ignore[override]
        """Maximum number of roundings: a product and the sums."""
        return self.weight.shape[1] + 1

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """Number of rows."""
        return self.weight.shape[0]

    def forward(self, h: Float[Tensor, "m inputs"]) -> Float[Tensor, "m outputs"]:
        """Compute W h."""
        return h @ self.weight.T

    def transpose(self, a: Float[Tensor, "m outputs"]) -> Float[Tensor, "m inputs"]:
        """Compute a W."""
        return a @ self.weight

    def absolute(self) -> Map:
        """Return |W|."""
        return Dense(self.weight.abs())

    def matrix(self) -> Float[Tensor, "outputs inputs"]:
        """Return the weight."""
        return self.weight


@dataclass(frozen=True, eq=False)
class Scale(Map):
    """A diagonal matrix: a normalisation, or the identity."""

    diagonal: Float[Tensor, " inputs"]
    roundings: int = 2
    """Number of roundings: a product, or a quotient whose inverse was rounded here; more if entries were computed."""

    @property
    def inputs(self) -> int:  # type: ignore[override]
        """Length of the diagonal."""
        return len(self.diagonal)

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """Length of the diagonal."""
        return len(self.diagonal)

    def forward(self, h: Float[Tensor, "m inputs"]) -> Float[Tensor, "m outputs"]:
        """Multiply entry by entry."""
        return h * self.diagonal

    def transpose(self, a: Float[Tensor, "m outputs"]) -> Float[Tensor, "m inputs"]:
        """Multiply entry by entry."""
        return a * self.diagonal

    def absolute(self) -> Map:
        """Take the moduli of the diagonal."""
        return replace(self, diagonal=self.diagonal.abs())


@dataclass(frozen=True, eq=False)
class Convolution(Map):
    """A two-dimensional convolution with zero padding, from features of one shape to another."""

    kernel: Float[Tensor, "out_channels group_channels height width"]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def inputs(self) -> int:  # type: ignore[override]
        """Number of features before."""
        return math.prod(self.before)

    @property
    def roundings(self) -> int:  # type: ignore[override]
        """Maximum number of roundings: a product and the sums."""
        return self.kernel[0].numel() + 1

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """Number of features after."""
        return math.prod(self.after)

    def forward(self, h: Float[Tensor, "m inputs"]) -> Float[Tensor, "m outputs"]:
        """Correlate, as torch does."""
        return functional.conv2d(
            h.view(-1, *self.before), self.kernel, None, self.stride, self.padding, self.dilation, self.groups
        ).flatten(1)

    def transpose(self, a: Float[Tensor, "m outputs"]) -> Float[Tensor, "m inputs"]:
        """Apply the transposed convolution, with the rows that the stride leaves over."""
        rest = [
            self.before[1 + i]
            - ((self.after[1 + i] - 1) * self.stride[i] - 2 * self.padding[i])
            - self.dilation[i] * (self.kernel.shape[2 + i] - 1)
            - 1
            for i in range(2)
        ]
        return functional.conv_transpose2d(
            a.reshape(-1, *self.after), self.kernel, None, self.stride, self.padding, rest, self.groups, self.dilation
        ).flatten(1)

    def absolute(self) -> Map:
        """Take the moduli of the kernel."""
        return replace(self, kernel=self.kernel.abs())


@dataclass(frozen=True, eq=False)
class Chain(Map):
    """Maps applied one after the other."""

    maps: tuple[Map, ...]

    @property
    def inputs(self) -> int:  # type: ignore[override]
        """Number of inputs of the first map."""
        return self.maps[0].inputs

    @property
    def roundings(self) -> int:  # type: ignore[override]
        """Roundings of all maps and of a constant after each, which may be rounded to the program's precision first."""
        return sum(part.roundings + 2 for part in self.maps)

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """Number of outputs of the last map."""
        return self.maps[-1].outputs

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
        """Take the moduli of each part; the result is no smaller than the moduli of the whole."""
        return Chain(tuple(part.absolute() for part in self.maps))


@dataclass(frozen=True, eq=False)
class Sum(Map):
    """A sum of maps with the same inputs."""

    maps: tuple[Map, ...]

    @property
    def inputs(self) -> int:  # type: ignore[override]
        """Number of inputs of each map."""
        return self.maps[0].inputs

    @property
    def roundings(self) -> int:  # type: ignore[override]
        """Roundings of the map that has most, and of the sums."""
        return max(part.roundings for part in self.maps) + len(self.maps)

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """Number of outputs of each map."""
        return self.maps[0].outputs

    def forward(self, h: Float[Tensor, "m inputs"]) -> Float[Tensor, "m outputs"]:
        """Add up the outputs of the maps."""
        return torch.stack([part.forward(h) for part in self.maps]).sum(dim=0)

    def transpose(self, a: Float[Tensor, "m outputs"]) -> Float[Tensor, "m inputs"]:
        """Add up the outputs of the transposed maps."""
        return torch.stack([part.transpose(a) for part in self.maps]).sum(dim=0)

    def absolute(self) -> Map:
        """Take the moduli of each part; the result is no smaller than the moduli of the whole."""
        return Sum(tuple(part.absolute() for part in self.maps))
