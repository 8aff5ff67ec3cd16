"""Linear maps between images, members of the family in `maps`. An image has one, two or three axes."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from certbench.networks.maps import Dense, Map, Scale
from certbench.numerics.rounding import TINY, gamma

Pair = tuple[int, int]

_CORRELATE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}

_SPREAD = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


@dataclass(frozen=True, eq=False)
class Convolution(Map):
    """A convolution along one, two or three axes, from features of one shape to another.

    Attributes:
        kernel: the stored entries.
        before: `(channels, height, width)` of the input; one or three sizes stand behind the channels of others.
        after: the same of the output.
        stride: stride along each axis. This default and the next two are those of two axes.
        padding: padding before the first row and column; `after` determines that behind the last.
        dilation: distance of the taps along each axis.
        groups: number of groups of channels.
        circular: whether the padding repeats the map; else it is zero.
        entry_roundings: each entry of the kernel is off by at most `gamma(entry_roundings)` of itself.
    """

    kernel: Float[Tensor, "out_channels group_channels ..."]
    before: tuple[int, ...]
    after: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    circular: bool = False
    entry_roundings: int = 0

    @property
    def inputs(self) -> int:
        """Number of input features."""
        return math.prod(self.before)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the output."""
        return self.after

    @property
    def roundings(self) -> int:
        """Roundings of the product, of the sums, and of an entry."""
        return self.kernel[0].numel() + 1 + self.entry_roundings

    @property
    def transposed_roundings(self) -> int:
        """Roundings of the product, of the sums, and of an entry.

        Through one tap an input reaches one output at most; round a circle it reaches as many as there are turns.
        """
        taps = self.kernel[:, 0].numel() // self.groups
        if self.circular:
            sizes = zip(self.before[1:], self.after[1:], self.stride, strict=True)
            taps *= math.prod(-(-o * math.gcd(n, s) // n) for n, o, s in sizes)
        return taps + 1 + self.entry_roundings

    @property
    def axes(self) -> int:
        """Number of axes of the image."""
        return self.kernel.dim() - 2

    @property
    def products(self) -> int:
        """One for each tap of each output."""
        return self.outputs * self.kernel[0].numel()

    @property
    def unfolded(self) -> int:
        """The taps of all places, which torch writes side by side in float64."""
        return math.prod(self.after[1:]) * self.kernel[0].numel() * self.groups

    @property
    def device(self) -> torch.device:
        """The device of the kernel."""
        return self.kernel.device

    @cached_property
    def error(self) -> Float[Tensor, "out_channels group_channels ..."]:
        """Upper bounds of the distance to the exact kernel."""
        if self.entry_roundings == 0:
            return torch.zeros_like(self.kernel)
        return gamma(self.entry_roundings + 2) * self.kernel.abs() + TINY

    @cached_property
    def entries(self) -> Float[Tensor, "out_channels group_channels ..."]:
        """Upper bounds of the moduli of the exact kernel, but for one rounding."""
        return self.kernel.abs() + self.error

    @property
    def spans(self) -> list[int]:
        """Number of rows and columns that the taps of all outputs cover, padding included."""
        return [
            s * (o - 1) + d * (k - 1) + 1
            for s, o, d, k in zip(self.stride, self.after[1:], self.dilation, self.kernel.shape[2:], strict=True)
        ]

    @property
    def behind(self) -> list[int]:
        """Padding behind the last row and column."""
        return [max(0, span - n - p) for span, n, p in zip(self.spans, self.before[1:], self.padding, strict=True)]

    @property
    def symmetric(self) -> bool:
        """Whether equal zero padding on both sides gives the right number of outputs: torch then pads by itself."""
        fitting = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(
                self.before[1:], self.padding, self.dilation, self.kernel.shape[2:], self.stride, strict=True
            )
        )
        return not self.circular and tuple(fitting) == self.after[1:]

    def forward(self, h: Float[Tensor, "m inputs"]) -> Float[Tensor, "m outputs"]:
        """Correlate, as torch does."""
        maps, padding = h.view(-1, *self.before), self.padding
        if not self.symmetric:
            border = [side for both in zip(self.padding, self.behind, strict=True) for side in reversed(both)][::-1]
            maps = functional.pad(maps, border, mode="circular" if self.circular else "constant")
            for axis, span in enumerate(self.spans, start=2):
                maps = maps.narrow(axis, 0, span)
            padding = (0,) * self.axes
        correlate = _CORRELATE[self.axes]
        return correlate(maps, self.kernel, None, self.stride, padding, self.dilation, self.groups).flatten(1)

    def transpose(self, a: Float[Tensor, "m outputs"]) -> Float[Tensor, "m inputs"]:
        """Return the transposed convolution, with the rows that the stride leaves over."""
        maps, spread = a.reshape(-1, *self.after), _SPREAD[self.axes]
        if not self.symmetric:
            wide = spread(maps, self.kernel, None, self.stride, 0, 0, self.groups, self.dilation)
            for axis, (n, p) in enumerate(zip(self.before[1:], self.padding, strict=True), start=2):
                at = torch.arange(wide.shape[axis], device=a.device) - p
                inside = (at >= 0) & (at < n)
                if self.circular:
                    at, inside = at.remainder(n), torch.ones_like(inside)
                seen = wide.movedim(axis, 0)[inside]
                wide = seen.new_zeros(n, *seen.shape[1:]).index_add(0, at[inside], seen).movedim(0, axis)
            return wide.flatten(1)
        spans = zip(self.before[1:], self.spans, self.padding, strict=True)
        rest = [n - (span - 2 * p) for n, span, p in spans]
        return spread(maps, self.kernel, None, self.stride, self.padding, rest, self.groups, self.dilation).flatten(1)

    def sparse(self) -> scipy.sparse.csr_matrix:
        """Return the entries tap by tap."""
        window = self.kernel.shape[2:]
        kernel = self.kernel.cpu().reshape(self.groups, -1, self.kernel.shape[1], math.prod(window)).numpy()
        parts = []
        for at, taps in enumerate(itertools.product(*map(range, window))):
            part = scipy.sparse.coo_matrix(scipy.sparse.block_diag(list(kernel[..., at])))
            for axis, tap in enumerate(taps):
                part = scipy.sparse.coo_matrix(scipy.sparse.kron(part, self._read(axis, tap)))
            parts.append(part)
        rows, columns = np.concatenate([part.row for part in parts]), np.concatenate([part.col for part in parts])
        values = np.concatenate([part.data for part in parts])
        return scipy.sparse.csr_matrix((values, (rows, columns)), (self.outputs, self.inputs))

    def _read(self, axis: int, tap: int) -> scipy.sparse.coo_matrix:
        """Return ones where an output reads an input through one tap, along one axis."""
        n, output = self.before[1 + axis], np.arange(self.after[1 + axis])
        at = output * self.stride[axis] + tap * self.dilation[axis] - self.padding[axis]
        at = at % n if self.circular else at
        inside = (at >= 0) & (at < n)
        ones = np.ones(inside.sum())
        return scipy.sparse.coo_matrix((ones, (output[inside], at[inside])), (len(output), n))

    def absolute(self) -> Map:
        """Return the convolution with the moduli of the kernel."""
        return replace(self, kernel=self.kernel.abs())

    def to(self, dtype: torch.dtype) -> "Convolution":
        """Cast the kernel."""
        return replace(self, kernel=self.kernel.to(dtype))


@dataclass(frozen=True, eq=False)
class Separable(Map):
    """The Kronecker product of a scaling of the channels and a matrix along either axis of the map.

    The matrices have no negative entries.
    """

    channels: Scale
    vertical: Dense
    horizontal: Dense

    @property
    def factors(self) -> "tuple[Scale | Dense, ...]":
        """The factors: channels, vertical, horizontal."""
        return self.channels, self.vertical, self.horizontal

    @property
    def inputs(self) -> int:
        """Number of input features: channels times the size of the map."""
        return math.prod(factor.inputs for factor in self.factors)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the output: channels, height and width."""
        return tuple(factor.outputs for factor in self.factors)

    @property
    def roundings(self) -> int:
        """Sum over all factors."""
        return sum(factor.roundings for factor in self.factors)

    @property
    def transposed_roundings(self) -> int:
        """Sum over all factors."""
        return sum(factor.transposed_roundings for factor in self.factors)

    @property
    def entry_roundings(self) -> int:
        """Sum over all factors."""
        return sum(factor.entry_roundings for factor in self.factors)

    @property
    def products(self) -> int:
        """Multiplications along the three axes."""
        channels, down, across = self.factors
        middle = channels.outputs * down.outputs
        return self.inputs + middle * down.inputs * across.inputs + middle * across.outputs * across.inputs

    @property
    def device(self) -> torch.device:
        """The device of the channels' factors."""
        return self.channels.device

    def along(
        self, h: Float[Tensor, "m _"], sizes: tuple[int, ...], act: Callable[[Scale | Dense, Tensor], Tensor]
    ) -> Float[Tensor, "m _"]:
        """Let each factor act along its axis of features of these sizes."""
        moved = h.reshape(len(h), *sizes)
        for axis, factor in enumerate(self.factors, start=1):
            last = moved.movedim(axis, -1)
            moved = act(factor, last.reshape(-1, last.shape[-1])).reshape(*last.shape[:-1], -1).movedim(-1, axis)
        return moved.flatten(1)

    def forward(self, h: Float[Tensor, "m inputs"]) -> Float[Tensor, "m outputs"]:
        """Multiply axis by axis."""
        return self.along(h, tuple(factor.inputs for factor in self.factors), lambda factor, part: factor.forward(part))

    def transpose(self, a: Float[Tensor, "m outputs"]) -> Float[Tensor, "m inputs"]:
        """Multiply axis by axis by the transposed factors."""
        return self.along(a, self.shape, lambda factor, part: factor.transpose(part))

    def absolute(self) -> Map:
        """Return the product of the factors' moduli."""
        return replace(self, channels=self.channels.absolute())

    def to(self, dtype: torch.dtype) -> "Separable":
        """Cast all factors."""
        return Separable(self.channels.to(dtype), self.vertical.to(dtype), self.horizontal.to(dtype))

    def matrix(self) -> Float[Tensor, "outputs inputs"]:
        """Return the Kronecker product, entry by entry."""
        axes = torch.kron(self.vertical.weight, self.horizontal.weight)
        return torch.kron(torch.diag(self.channels.diagonal), axes)

    def sparse(self) -> scipy.sparse.csr_matrix:
        """Return the Kronecker product, entry by entry."""
        axes = scipy.sparse.kron(self.vertical.sparse(), self.horizontal.sparse())
        channels = scipy.sparse.diags(self.channels.diagonal.cpu().numpy())
        return scipy.sparse.csr_matrix(scipy.sparse.kron(channels, axes))
