"""The base class of noises, the step from heights to certified radii, and pieces of samplers.

Two arguments turn probabilities into radii. Both serve one-vs-rest (`p_upper = 1 - p_lower`) and two classes.

Odd heights (Yang et al., 2020). Let F(t) bound the rate at which a set of probability t <= 1/2 under x + noise gains
probability as x moves with unit speed in the norm. Then h(p) = integral of dt / F(min(t, 1 - t)) from 1/2 to p is odd
about 1/2, and x -> h(g_c(x)) is 1-Lipschitz for the probability g_c of every class c. So class A wins within
R = (h(p_A) - h(p_B)) / 2. By symmetry of the noise, F(1 - t) = F(t); the supremum over directions is taken at an
extreme point of the unit ball, as a convex function's maximum.

Total variation. A shift by delta changes the probability of any set by at most T(delta), the total variation between
the noise and its shift; class A wins while T(delta) < (p_A - p_B) / 2.

Radii are rounded down. They are statements about real arithmetic: samples are float32, and so is their sum with x.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from certbench.core.ranges import Options, Sigma
from certbench.errors import UnsupportedError

Stream = np.random.Generator | torch.Generator
"""A source of draws: NumPy's generator, on the CPU, or torch's, on its device. They give different draws."""

ALLOWANCE = 1e-11
"""Relative allowance that is taken off radii, in units of the heights that they are made of. SciPy's inverse functions
and the sums built on them agree with 40 digits to 1e-13 on the probabilities and dimensions of the tests."""

TINY = 1e-60
"""Smallest probability that is told apart: a rival's is raised to it, and a class below it certifies nothing."""


@dataclass(frozen=True)
class Noise(Options, ABC):
    """Additive noise, symmetric about 0, the same whatever the input.

    Attributes:
        sigma: root of the mean square of a coordinate, in units of the input.
    """

    sigma: Sigma = 0.25

    norms: ClassVar[frozenset[float]] = frozenset({1.0, 2.0, math.inf})
    """Norms that certificates are asked for; `radius` knows every p >= 1."""
    additive: ClassVar[bool] = True
    """Whether the noise may pass an affine layer by itself, before the input is added, without any loss."""

    @abstractmethod
    def scale(self, d: int) -> float:
        """Return the scale in which the literature states this noise, for dimension d.

        Raises:
            UnsupportedError: the noise does not exist in so few dimensions.
        """

    @abstractmethod
    def draw(self, stream: Stream, n: int, d: int) -> Float[Tensor, "n d"]:
        """Draw n times in float32, on the stream's device, a function of the stream's state alone.

        Raises:
            UnsupportedError: the noise does not exist in so few dimensions.
        """

    def sample(self, stream: np.random.Generator, n: int, d: int) -> Float[np.ndarray, "n d"]:
        """Draw n times, for NumPy."""
        found: Float[np.ndarray, "n d"] = self.draw(stream, n, d).numpy()
        return found

    def perturb(self, point: Float[Tensor, " d"], stream: Stream, n: int) -> Float[Tensor, "n d"]:
        """Add each of n draws to the input, in the input's precision; the input is on the stream's device."""
        return self.draw(stream, n, len(point)).to(point.dtype).add_(point)

    @abstractmethod
    def direct(self, p_lower: float, p_upper: float, d: int) -> Mapping[float, float]:
        """Return radii in the norms that have their own formula, rounded down; `0 <= p_upper < p_lower <= 1` holds."""

    def radius(self, p_lower: float, p_upper: float, p: float, d: int) -> float:
        r"""Return the certified radius in the p-norm, rounded down; 0 where nothing is certified.

        It is the largest of the direct radii $R_a$, each divided by $d^{\max(0, 1/a - 1/p)}$, because
        $\|\delta\|_a \le d^{\max(0, 1/a - 1/p)} \|\delta\|_p$.

        Args:
            p_lower: lower bound of the class's probability; 1 gives infinity for noises without bounds.
            p_upper: upper bound of every other class's probability. `1 - p_lower` is one if classes exclude each other.
            p: the norm, at least 1.
            d: dimension of the input.

        Raises:
            UnsupportedError: p < 1, or the noise does not exist in so few dimensions.
        """
        if not p >= 1:
            raise UnsupportedError(f"additive noise certifies p-norms with p >= 1, not p = {p:g}")
        if not (0 <= p_upper < p_lower <= 1 and p_lower > TINY):
            return 0.0
        radii = self.direct(p_lower, p_upper, d)
        best = max(radius / d ** max(0.0, 1 / a - 1 / p) for a, radius in radii.items())
        return best * (1 - ALLOWANCE) if best > 0 else 0.0


def odd(
    height: Callable[[float], float],
    p_lower: float,
    p_upper: float,
    *,
    allowance: float = ALLOWANCE,
    scale: float = 1.0,
) -> float:
    """Return (h(p_lower) - h(p_upper)) / 2 times a scale, rounded down.

    Args:
        height: the odd function on tails: h(1 - t) = -h(t) = height(t) for t in (0, 1/2].
        p_lower: lower bound of the class's probability.
        p_upper: upper bound of every other class's probability.
        allowance: amount that is taken off, relative to the heights.
        scale: scale of the noise.
    """
    if p_lower == 1 or p_upper == 0:
        return math.inf
    high, low = (
        math.copysign(height(max(TINY, min(p, 1 - p))), p - 0.5)  # 1 - p is exact from 1/2 on
        for p in (p_lower, p_upper)
    )
    return scale / 2 * (high - low) - allowance * scale * (abs(high) + abs(low))


def odd_integral(integral: Callable[[float, float], float], p_lower: float, p_upper: float, allowance: float) -> float:
    """Do as `odd` does where the height is an integral that errs downward: `integral(t, top)` with t < top <= 1/2."""
    if p_lower == 1 or p_upper == 0:
        return math.inf
    if p_lower <= 0.5:
        total = integral(max(TINY, p_upper), p_lower)
    elif p_upper >= 0.5:
        total = integral(1 - p_lower, 1 - p_upper)
    else:
        total = integral(1 - p_lower, 0.5) + integral(max(TINY, p_upper), 0.5)
    return total / 2 * (1 - allowance)


def normal(stream: Stream, n: int, d: int) -> Float[Tensor, "n d"]:
    """Draw standard normals; on a device in float64, because torch's float32 ones end early (on the CPU at 5.77)."""
    if isinstance(stream, np.random.Generator):
        return torch.from_numpy(stream.standard_normal((n, d), dtype=np.float32))
    return _empty(stream, n, d).normal_(generator=stream).float()


def exponential(stream: Stream, n: int, d: int) -> Float[Tensor, "n d"]:
    """Draw standard exponentials; on a device from float64, which ends at 36.7 and not at 16.6."""
    if isinstance(stream, np.random.Generator):
        return torch.from_numpy(stream.standard_exponential((n, d), dtype=np.float32))
    return _empty(stream, n, d).exponential_(generator=stream).float()


def symmetric(stream: Stream, n: int, d: int) -> Float[Tensor, "n d"]:
    """Draw uniformly on [-1, 1], centred in the 2^24 cells that float32 draws tell apart, or the 2^53 of a device."""
    if isinstance(stream, np.random.Generator):
        return torch.from_numpy(stream.random((n, d), dtype=np.float32)).mul_(2).sub_(1 - 2.0**-24)
    return _empty(stream, n, d).uniform_(generator=stream).mul_(2).sub_(1 - 2.0**-53).float()


def integers(stream: Stream, top: int, *shape: int) -> Int[Tensor, "..."]:
    """Draw uniformly from 0, ..., top - 1, for top at most 2^63."""
    if isinstance(stream, np.random.Generator):
        return torch.from_numpy(stream.integers(0, top, shape))
    drawn = torch.empty(shape, dtype=torch.int64, device=stream.device)
    return drawn.random_(generator=stream) if top == 2**63 else drawn.random_(top, generator=stream)


def signs(stream: Stream, n: int, d: int) -> Float[Tensor, "n d"]:
    """Draw fair signs."""
    if isinstance(stream, np.random.Generator):
        return torch.from_numpy(stream.integers(0, 2, (n, d), dtype=np.int8)).float().mul_(2).sub_(1)
    return integers(stream, 2, n, d).float().mul_(2).sub_(1)


def host(stream: Stream) -> np.random.Generator:
    """Return a stream of NumPy for gamma draws, mostly one per row: this one, or one that its next draw seeds."""
    if isinstance(stream, np.random.Generator):
        return stream
    return np.random.Generator(np.random.SFC64(int(integers(stream, 2**63, 1))))


def times(noise: Float[Tensor, "n d"], factor: float) -> Float[Tensor, "n d"]:
    """Multiply the noise in place by a factor that is rounded up: its scale is never below the certified one."""
    rounded = np.float32(factor)
    return noise.mul_(float(rounded if rounded >= factor else np.nextafter(rounded, np.float32(math.inf))))


def directions(stream: Stream, length: Float[np.ndarray, " n"], d: int) -> Float[Tensor, "n d"]:
    """Draw uniform directions of the given lengths."""
    noise = normal(stream, len(length), d)
    norm = torch.linalg.vector_norm(noise, dim=1, dtype=torch.float64)
    return noise.mul_((torch.from_numpy(length).to(noise.device) / norm.clamp_(min=1e-30)).float()[:, None])


def cubes(stream: Stream, length: Float[np.ndarray, " n"], d: int) -> Float[Tensor, "n d"]:
    """Draw uniformly on the surfaces of cubes of the given half sides."""
    noise = symmetric(stream, len(length), d)
    axes = integers(stream, d, len(length))
    noise.scatter_(1, axes[:, None], signs(stream, len(length), 1))
    return noise.mul_(torch.from_numpy(length).to(noise.device, torch.float32)[:, None])


def _empty(stream: torch.Generator, n: int, d: int) -> Float[Tensor, "n d"]:
    return torch.empty(n, d, dtype=torch.float64, device=stream.device)
