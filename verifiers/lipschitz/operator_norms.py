r"""Linear maps and upper bounds of their operator norms, proved in float64 (Rump, 2006: verified Cholesky).

Power iteration and Lanczos estimate from below, and a computed singular value is an estimate, too. Here it is
only a guess, and a completed Cholesky factorisation of $(\mu - c) I - A^* A$ proves $\|A\|_2^2 \leq \mu$, where c
exceeds what rounding can do to the factorisation (Rump, BIT 46, 2006). Sums of nonnegative terms are raised by their
rounding error $\gamma_k = k u / (1 - k u)$ (Higham, 2002, Lemma 3.1), which holds in any order of summation.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import final

import torch
from jaxtyping import Float, Inexact
from torch import Tensor, nn

from certbench.errors import UnsupportedError
from certbench.numerics.rounding import TINY, dual, gamma, lengths, longest, outward, product, total
from certbench.numerics.spectral import DENSE, SIDE, estimate, spectral


def identity(s: float, r: float, size: int) -> float:
    r"""$\max \|x\|_r / \|x\|_s = n^{\max(0, 1/r - 1/s)}$ over vectors of this size."""
    power = max(0.0, 1 / r - 1 / s)
    return 1.0 if power == 0 or size == 1 else size**power * (1 + gamma(4))


class LinearMap(ABC):
    """A linear map between feature shapes; no norm depends on how the features are arranged."""

    shape: tuple[int, ...]
    """Of the features that come out."""
    roundings: int
    """Behind each constant: how far the stored ones may be off."""

    @property
    @abstractmethod
    def inputs(self) -> int:
        """Number of features that go in."""

    @abstractmethod
    def row(self, q: float) -> float:
        """Largest q-norm of a row: the norm from the dual of q to inf."""

    @abstractmethod
    def column(self, r: float) -> float:
        """Largest r-norm of a column: the norm from 1 to r."""

    @cached_property
    @abstractmethod
    def spectral(self) -> float:
        """The norm from 2 to 2."""

    @property
    def box(self) -> float:
        """The norm from inf to 2."""
        return product(identity(math.inf, 2.0, self.inputs), self.spectral)

    @abstractmethod
    def absolute(self, chords: Float[Tensor, "d ..."]) -> Float[Tensor, "d ..."]:
        """The map with the moduli of its entries, applied to d nonnegative inputs, rounded up."""

    @final
    def norm(self, s: float, r: float) -> float:
        """Upper bound of the norm from s to r."""
        if s == 1:
            return self.column(r)
        if r == math.inf:
            return self.row(dual(s))
        outputs = math.prod(self.shape)
        if r == 2:
            return self.spectral if s == 2 else self.box
        return product(identity(2.0, 1.0, outputs), self.norm(s, 2.0))


@dataclass(frozen=True, eq=False)
class Diagonal(LinearMap):
    """Multiplication of each feature by a constant, which is off by at most `gamma(roundings)` of itself."""

    scale: Float[Tensor, "..."]
    roundings: int = 0

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Of the features."""
        return tuple(self.scale.shape)

    @property
    def inputs(self) -> int:
        """Number of features."""
        return self.scale.numel()

    @cached_property
    def entries(self) -> Float[Tensor, "..."]:
        """Upper bounds of the moduli."""
        return self.scale.abs() * (1 + gamma(self.roundings + 2))

    def row(self, q: float) -> float:
        """The largest constant."""
        return self.spectral

    def column(self, r: float) -> float:
        """The largest constant."""
        return self.spectral

    @cached_property
    def spectral(self) -> float:
        """The largest constant."""
        return longest(self.entries.reshape(1, -1), math.inf)

    @cached_property
    def box(self) -> float:
        """The length of the diagonal."""
        return longest(self.entries.reshape(1, -1), 2.0)

    def absolute(self, chords: Float[Tensor, "d ..."]) -> Float[Tensor, "d ..."]:
        """Scaled features."""
        return outward(chords.reshape(-1, *self.shape) * self.entries, 1)


@dataclass(frozen=True, eq=False)
class Matrix(LinearMap):
    """A matrix whose exact entries differ from `weight` by at most `gamma(roundings) magnitude`."""

    weight: Float[Tensor, "out_features in_features"]
    magnitude: Float[Tensor, "out_features in_features"]
    shape: tuple[int, ...]
    roundings: int = 0

    @property
    def inputs(self) -> int:
        """Number of columns."""
        return self.weight.shape[1]

    @cached_property
    def error(self) -> Float[Tensor, "out_features in_features"]:
        """Upper bounds of the distance to the exact entries."""
        if self.roundings == 0:
            return torch.zeros((), dtype=torch.float64).expand_as(self.magnitude)
        return gamma(self.roundings + 2) * self.magnitude + TINY

    @cached_property
    def entries(self) -> Float[Tensor, "out_features in_features"]:
        """Upper bounds of the moduli (but for a rounding, which `lengths` allows for)."""
        return self.weight.abs() + self.error

    def row(self, q: float) -> float:
        """Exact but for rounding."""
        return longest(self.entries, q)

    def column(self, r: float) -> float:
        """Exact but for rounding."""
        return longest(self.entries.T, r)

    @cached_property
    def spectral(self) -> float:
        """Exact but for rounding."""
        return total(spectral(self.weight[None]), self._error_norm)

    @cached_property
    def _error_norm(self) -> float:
        return longest(self.error.reshape(1, -1), 2.0) if self.roundings else 0.0

    @cached_property
    def box(self) -> float:
        r"""The least of three upper bounds (the norm from inf to 2 is NP-hard).

        $\sqrt n \|A\|_2$; $\||A| 1\|_2$; and $\|A S^{-1}\|_2 \|s\|_2$ with $S = \operatorname{diag}(s)$, which holds
        for every s > 0 and is used with $s_i^2 = \sum_j |A^T A|_{ij}$.
        """
        bounds = [
            product(identity(math.inf, 2.0, self.inputs), self.spectral),
            longest(lengths(self.entries, 1.0)[None], 2.0),
        ]
        if self.inputs <= 2 * SIDE:
            s = (self.weight.T @ self.weight).abs().sum(1).sqrt()
            s = s.clamp(min=max(1e-8 * float(s.max()), TINY))
            scaled = self.weight / s
            rounding = gamma(1) * longest(scaled.abs().reshape(1, -1), 2.0)
            bound = product(total(spectral(scaled[None]), rounding), longest(s[None], 2.0))
            bounds.append(total(bound, product(identity(math.inf, 2.0, self.inputs), self._error_norm)))
        return min(bounds)

    def absolute(self, chords: Float[Tensor, "d ..."]) -> Float[Tensor, "d ..."]:
        """One product of nonnegative matrices."""
        return outward(chords.flatten(1) @ self.entries.T, self.inputs + 1).reshape(len(chords), *self.shape)


Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Convolution(LinearMap):
    r"""A convolution that becomes no matrix because it is too large.

    Axis by axis, tap a reads input $s t + a d - p$ for output t. Writing $a d - p = s q + \rho$ with
    $0 \leq \rho < s$ turns stride s into stride 1 between s phases of the input. With zero padding that is a
    section of the convolution on every torus long enough that no tap wraps around onto another,
    $N \geq \max(o + q_{\max}, \lceil n / s \rceil - q_{\min})$ for o outputs; the torus of the input, N = n, is
    not. On a torus the norm is the largest over its frequencies $\theta$ of the norm of the symbol
    $H(\theta) = \sum_a K_a e^{-i \theta q_a}$, a small matrix of channels and phases (Sedghi et al., 2019). All of
    this holds as well where going round the torus changes the sign, which moves the frequencies by half a step.
    """

    kernel: Float[Tensor, "out_channels in_channels height width"]
    size: Pair
    shape: tuple[int, ...]
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int = 1
    circular: bool = False
    roundings: int = 0

    @property
    def inputs(self) -> int:
        """Channels times the size of the input map."""
        return self.kernel.shape[1] * self.groups * math.prod(self.size)

    def grouped(self, kernel: Tensor) -> Float[Tensor, "groups out_channels in_channels height width"]:
        """A kernel, group by group."""
        return kernel.reshape(self.groups, -1, *kernel.shape[1:])

    @cached_property
    def error(self) -> Float[Tensor, "out_channels in_channels height width"]:
        """Upper bounds of the distance to the exact kernel."""
        if self.roundings == 0:
            return torch.zeros_like(self.kernel)
        return gamma(self.roundings + 2) * self.kernel.abs() + TINY

    @cached_property
    def entries(self) -> Float[Tensor, "out_channels in_channels height width"]:
        """Upper bounds of the moduli of the kernel (but for a rounding, which `lengths` allows for)."""
        return self.kernel.abs() + self.error

    def taps(self, axis: int) -> tuple[Tensor, Float[Tensor, "phases taps"]]:
        """The shift q of each tap, and which phase it reads."""
        offset = torch.arange(self.kernel.shape[2 + axis]) * self.dilation[axis] - self.padding[axis]
        phase = offset.remainder(self.stride[axis])
        return (offset - phase) // self.stride[axis], _phases(phase, self.stride[axis])

    def waves(self, axis: int, twist: int) -> Inexact[Tensor, "frequencies phases taps"]:
        r"""$e^{-i \theta q}$, $\theta = (2 k + \text{twist}) \pi / N$; half of them on the second axis, by symmetry."""
        shift, phase = self.taps(axis)
        n, s, o = self.size[axis], self.stride[axis], self.shape[1 + axis]
        torus = n // s if self.circular else max(o + max(int(shift.max()), 0), -(-n // s) - min(int(shift.min()), 0))
        if bool((shift == shift[0]).all()):
            torus = 1  # all symbols are the same but for a phase
        frequency = 2 * torch.arange(torus if axis == 0 else torus // 2 + 1) + twist
        turn = (frequency[:, None] * shift + torus).remainder(2 * torus) - torus
        angle = turn.to(torch.float64) * (-math.pi / torus)
        return torch.polar(torch.ones_like(angle), angle)[:, None] * phase

    def row(self, q: float) -> float:
        """Exact but for rounding."""
        seen = torch.einsum("gocab,ra,sb->gorscab", self.grouped(self.entries), self._meet(0, 2), self._meet(1, 2))
        return longest(seen.flatten(4).flatten(0, 3), q)

    def column(self, r: float) -> float:
        """Exact but for rounding."""
        seen = torch.einsum("gocab,ra,sb->gcrsoab", self.grouped(self.entries), self._meet(0, 1), self._meet(1, 1))
        return longest(seen.flatten(4).flatten(0, 3), r)

    @cached_property
    def spectral(self) -> float:
        r"""For circular padding exact, if no output is left out; else from the torus that promises least.

        The torus may be twisted along either axis: with zeros around it a map cannot be constant, twists leave that
        out, and a kernel that blurs amplifies it most.

        A computed symbol is off by at most $\gamma_{4 k^2 + \ldots} \sum_a |K_a|$: complex arithmetic, and waves
        that are off by less than 32 u each.
        """
        height, width = self.kernel.shape[2:]
        blur = gamma(4 * (height * width + height + width) + 72)
        sums = self.grouped(blur * self.entries + self.error)
        blurred = torch.einsum("gocab,ra,sb->gocrs", sums, self.taps(0)[1], self.taps(1)[1])
        twists = [(0,) if self.circular or len(self.waves(axis, 0)) == 1 else (0, 1) for axis in range(2)]
        best = min(
            itertools.product(*twists),
            key=lambda twist: max(float(estimate(symbols).max()) for symbols in self.symbols(*twist)),
        )
        return total(max(spectral(symbols) for symbols in self.symbols(*best)), longest(blurred.flatten(1), 2.0))

    def symbols(self, *twist: int) -> Iterator[Inexact[Tensor, "batch m n"]]:
        """The symbol at every frequency and in every group, as many at a time as memory allows."""
        kernel = self.grouped(self.kernel).to(torch.complex128)
        vertical, horizontal = self.waves(0, twist[0]), self.waves(1, twist[1])
        entries = kernel[..., 0, 0].numel() * math.prod(self.stride) * len(horizontal)
        for some in torch.split(vertical, max(1, DENSE // entries)):
            symbol = torch.einsum("gocab,ura,vsb->uvgocrs", kernel, some, horizontal)
            yield symbol.flatten(4).flatten(0, 2)

    @cached_property
    def box(self) -> float:
        """The least of the same bounds as for a matrix, with one s for each channel."""
        s = lengths(self.grouped(self.entries).transpose(1, 2).flatten(2).flatten(0, 1), 2.0) ** 0.75  # a judgement
        s = s.clamp(min=max(1e-8 * float(s.max()), TINY))
        kernel = self.grouped(self.kernel) / s.reshape(self.groups, 1, -1, 1, 1)
        scaled = replace(self, kernel=kernel.flatten(0, 1), roundings=self.roundings + 1)
        pixels = math.prod(self.size)
        return min(
            product(identity(math.inf, 2.0, self.inputs), self.spectral),
            product(identity(math.inf, 2.0, pixels), product(scaled.spectral, longest(s[None], 2.0))),
            longest(self.absolute(torch.ones(1, self.inputs, dtype=torch.float64)).flatten(1), 2.0),
        )

    def absolute(self, chords: Float[Tensor, "d ..."]) -> Float[Tensor, "d ..."]:
        """The convolution with the moduli of the kernel."""
        ends = [
            max(0, s * (o - 1) + d * (k - 1) + 1 - n - p)
            for s, o, d, k, n, p in zip(
                self.stride, self.shape[1:], self.dilation, self.kernel.shape[2:], self.size, self.padding, strict=True
            )
        ]
        padding = (self.padding[1], ends[1], self.padding[0], ends[0])
        maps = chords.reshape(-1, self.kernel.shape[1] * self.groups, *self.size)
        padded = nn.functional.pad(maps, padding, mode="circular" if self.circular else "constant")
        seen = nn.functional.conv2d(
            padded, self.entries, stride=self.stride, dilation=self.dilation, groups=self.groups
        )
        return outward(seen, self.kernel[0].numel() + 1)

    def matrix(self) -> Matrix:
        """The same map, entry by entry; each is one of the kernel's, without rounding."""
        vertical, horizontal = self._incidence(0), self._incidence(1)
        own = torch.eye(self.groups, dtype=torch.float64)
        weight = torch.einsum("gocab,ati,bsj,gh->gotshcij", self.grouped(self.kernel), vertical, horizontal, own)
        weight = weight.flatten(4).flatten(0, 3)
        return Matrix(weight, weight.abs(), self.shape, self.roundings)

    def _incidence(self, axis: int) -> Float[Tensor, "taps o n"]:
        """Whether tap a reads input i for output t."""
        tap, output = torch.arange(self.kernel.shape[2 + axis]), torch.arange(self.shape[1 + axis])
        read = output * self.stride[axis] + (tap * self.dilation[axis] - self.padding[axis])[:, None]
        read = read.remainder(self.size[axis]) if self.circular else read
        return (read[..., None] == torch.arange(self.size[axis])).to(torch.float64)

    def _meet(self, axis: int, where: int) -> Float[Tensor, "sets taps"]:
        """The largest sets of taps that meet in one input (where = 1) or in one output (2)."""
        sets: Tensor = torch.unique(self._incidence(axis).sum(where).T, dim=0)
        largest: Tensor = (sets[:, None] <= sets).all(2).sum(1) == 1
        return sets[largest]


@dataclass(frozen=True, eq=False)
class Separable(LinearMap):
    """The Kronecker product of a scaling of the channels and a matrix along either axis of the map.

    Its norms are the products of theirs; so is the one from inf to 2 for axes without negative entries, as here.
    """

    channels: Diagonal
    vertical: Matrix
    horizontal: Matrix

    @property
    def factors(self) -> tuple[Diagonal, Matrix, Matrix]:
        """Channels, vertical, horizontal."""
        return self.channels, self.vertical, self.horizontal

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Of the features that come out."""
        return tuple(math.prod(factor.shape) for factor in self.factors)

    @property
    def roundings(self) -> int:  # type: ignore[override]
        """Those of all factors."""
        return sum(factor.roundings for factor in self.factors)

    @property
    def inputs(self) -> int:
        """Channels times the size of the input map."""
        return math.prod(factor.inputs for factor in self.factors)

    def row(self, q: float) -> float:
        """Exact but for rounding."""
        return reduce(product, (factor.row(q) for factor in self.factors))

    def column(self, r: float) -> float:
        """Exact but for rounding."""
        return reduce(product, (factor.column(r) for factor in self.factors))

    @cached_property
    def spectral(self) -> float:
        """Exact but for rounding."""
        return reduce(product, (factor.spectral for factor in self.factors))

    @cached_property
    def box(self) -> float:
        """Exact but for rounding."""
        return reduce(product, (factor.box for factor in self.factors))

    def absolute(self, chords: Float[Tensor, "d ..."]) -> Float[Tensor, "d ..."]:
        """Axis by axis."""
        moved = chords.reshape(len(chords), *(factor.inputs for factor in self.factors))
        for axis, factor in enumerate(self.factors, start=1):
            last = moved.movedim(axis, -1)
            moved = factor.absolute(last.reshape(-1, factor.inputs)).reshape(*last.shape[:-1], -1).movedim(-1, axis)
        return moved

    def matrix(self) -> Matrix:
        """The same map, entry by entry."""
        axes = torch.kron(self.vertical.weight, self.horizontal.weight)
        weight = torch.kron(torch.diag(self.channels.scale), axes)
        return Matrix(weight, weight.abs(), self.shape, self.roundings + 2)


def linear(weight: Float[Tensor, "out_features in_features"]) -> Matrix:
    """A dense layer."""
    weight = weight.to(torch.float64)
    return Matrix(weight, weight.abs(), (len(weight),))


def convolution(
    kernel: Float[Tensor, "out_channels in_channels height width"],
    size: Pair,
    shape: tuple[int, ...],
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    circular: bool = False,
    roundings: int = 0,
) -> Convolution | Matrix:
    """A convolution from maps of `size` to features of `shape`, as a matrix where that is small.

    Args:
        kernel: `(out_channels, in_channels / groups, height, width)`.
        size: of the input map.
        shape: `(out_channels, height, width)` that comes out.
        stride: along both axes, as everything below.
        padding: before the first row and column; behind the last, `shape` tells.
        dilation: distance of the taps.
        groups: of channels.
        circular: whether the padding repeats the map instead of zeros.
        roundings: behind each entry of the kernel.

    Raises:
        UnsupportedError: circular padding around a map that is no whole number of strides, or no longer than
            the kernel.
    """
    layer = Convolution(kernel.to(torch.float64), size, shape, stride, padding, dilation, groups, circular, roundings)
    if circular:
        for n, s, o, k, d in zip(size, stride, shape[1:], kernel.shape[2:], dilation, strict=True):
            if n % s or o * s > n or d * (k - 1) + 1 > n:
                raise UnsupportedError(
                    f"has no bound here with circular padding of {n} pixels, {k} taps and stride {s}"
                )
    return layer.matrix() if is_small(layer) else layer


def is_small(layer: LinearMap) -> bool:
    """Whether to make a matrix of a map."""
    outputs = math.prod(layer.shape)
    return min(layer.inputs, outputs) <= SIDE and layer.inputs * outputs <= DENSE


def separable(channels: Diagonal, vertical: Matrix, horizontal: Matrix) -> Separable | Matrix:
    """Matrices with no negative entries along the axes of each channel, as one matrix where that is small."""
    layer = Separable(channels, vertical, horizontal)
    return layer.matrix() if is_small(layer) else layer


def compose(outer: LinearMap, inner: LinearMap) -> LinearMap | None:
    """`outer` after `inner` as one map, or None where there is no cheap one."""
    roundings = outer.roundings + inner.roundings + 2
    match outer, inner:
        case Diagonal(), Diagonal():
            return Diagonal(outer.scale * inner.scale, roundings)
        case Diagonal(), Matrix():
            by = outer.scale.reshape(-1, 1)
            return Matrix(by * inner.weight, by.abs() * inner.magnitude, outer.shape, roundings)
        case Matrix(), Diagonal():
            by = inner.scale.reshape(1, -1)
            return Matrix(outer.weight * by, outer.magnitude * by.abs(), outer.shape, roundings)
        case Matrix(), Matrix() if outer.weight.shape[0] * inner.inputs <= max(
            outer.weight.numel(), inner.weight.numel()
        ):  # else through a bottleneck: the product would have more entries than its factors
            roundings += 2 * outer.inputs
            return Matrix(outer.weight @ inner.weight, outer.magnitude @ inner.magnitude, outer.shape, roundings)
        case Diagonal(), Convolution() if outer.shape == inner.shape and _constant(outer):
            by = outer.scale[:, :1, :1, None]
            return replace(inner, kernel=by * inner.kernel, roundings=roundings)
        case Convolution(), Diagonal() if _constant(inner):
            by = inner.scale[:, 0, 0].reshape(outer.groups, 1, -1, 1, 1)
            return replace(outer, kernel=(outer.grouped(outer.kernel) * by).flatten(0, 1), roundings=roundings)
        case Diagonal(), Separable() if outer.shape == inner.shape and _constant(outer):
            return replace(inner, channels=_scaled(inner.channels, outer))
        case Separable(), Diagonal() if _constant(inner):
            return replace(outer, channels=_scaled(outer.channels, inner))
    return None


def _scaled(channels: Diagonal, by: Diagonal) -> Diagonal:
    return Diagonal(channels.scale * by.scale[:, 0, 0], channels.roundings + by.roundings + 2)


def _phases(phase: Tensor, stride: int) -> Float[Tensor, "phases taps"]:
    return (phase == torch.arange(stride)[:, None]).to(torch.float64)


def _constant(diagonal: Diagonal) -> bool:
    """Whether the constants are the same all over each channel."""
    return bool((diagonal.scale == diagonal.scale[:, :1, :1]).all())
