"""Noises of randomized smoothing, each with its sampler and its certified radii.

Families of Yang, Duan, Hu, Salman, Razenshteyn and Li (2020), "Randomized smoothing of all shapes and sizes", and the
papers named at each; `base` explains how heights and total variation become radii.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import betaincinv
from torch import Tensor

from certbench.core.ranges import between
from certbench.errors import UnsupportedError
from certbench.verifiers.smoothing.noise import differential_method as heights
from certbench.verifiers.smoothing.noise import gaussian_radius
from certbench.verifiers.smoothing.noise.base import (
    ALLOWANCE,
    Noise,
    Stream,
    cubes,
    directions,
    exponential,
    host,
    normal,
    odd,
    odd_integral,
    signs,
    symmetric,
    times,
)

__all__ = [
    "NOISES",
    "ExpInf",
    "ExpP",
    "ExpTwo",
    "Gaussian",
    "Laplace",
    "Noise",
    "Pareto",
    "PowInf",
    "Uniform",
    "UniformBall",
    "uniform_l1_in_box",
]

LOOSE = 1e-9
"""Relative allowance where an integral is a sum over thousands of incomplete gamma or beta functions."""

TailIndex = Annotated[float, between(2, 1000, "right", "sigma is infinite up to 2")]
"""Power of a tail, for a density that falls like x^(-a - 1)."""


@dataclass(frozen=True)
class Gaussian(Noise):
    """Normal noise (Cohen, Rosenfeld and Kolter, 2019, Theorem 1; tight for L2). Scale: the standard deviation."""

    def scale(self, d: int) -> float:
        """Return sigma."""
        del d
        return self.sigma

    def draw(self, stream: Stream, n: int, d: int) -> Float[Tensor, "n d"]:
        """Draw normals that do not end at 5.77, as torch's in float32 do."""
        return times(normal(stream, n, d), self.sigma)

    def direct(self, p_lower: float, p_upper: float, d: int) -> Mapping[float, float]:
        r"""Return the L2 radius $\sigma/2 (\Phi^{-1}(p_A) - \Phi^{-1}(p_B))$."""
        del d
        return {2.0: self.sigma * odd(gaussian_radius.height, p_lower, p_upper)}


@dataclass(frozen=True)
class Laplace(Noise):
    """Independent Laplace noise (Teng, Lee and Yuan, 2020; Yang et al., 2020). Scale: b = sigma / sqrt(2)."""

    def scale(self, d: int) -> float:
        """Return the b of density exp(-|x|/b) / 2b."""
        del d
        return self.sigma / math.sqrt(2)

    def draw(self, stream: Stream, n: int, d: int) -> Float[Tensor, "n d"]:
        """Draw differences of two exponentials."""
        return times(exponential(stream, n, d).sub_(exponential(stream, n, d)), self.scale(d))

    def direct(self, p_lower: float, p_upper: float, d: int) -> Mapping[float, float]:
        """Return the L1 radius, half the difference of quantiles (tight), and Linf by `laplace_linf` (exact)."""
        b = self.scale(d)
        return {
            1.0: b * odd(lambda tail: -math.log(2 * tail), p_lower, p_upper),
            math.inf: b * odd(partial(heights.laplace_linf, d=d), p_lower, p_upper),
        }


@dataclass(frozen=True)
class Uniform(Noise):
    """Uniform noise on a box (Lee et al., 2019; Yang et al., 2020). Scale: half its side, lambda = sigma sqrt(3)."""

    def scale(self, d: int) -> float:
        """Return the lambda of [-lambda, lambda]^d."""
        del d
        return self.sigma * math.sqrt(3)

    def draw(self, stream: Stream, n: int, d: int) -> Float[Tensor, "n d"]:
        """Draw uniformly."""
        return times(symmetric(stream, n, d), self.scale(d))

    def direct(self, p_lower: float, p_upper: float, d: int) -> Mapping[float, float]:
        r"""Return radii by total variation $T = 1 - \prod (1 - u_i)$, $u_i = |\delta_i| / 2\lambda$; all are tight.

        L1: $T \le \sum u_i$, with equality on an axis. L2 and Linf: the worst shift is a diagonal one,
        $T = 1 - (1 - u)^d$, in Linf as T increases in each u_i, and in L2 because $T \le 1/2$ leaves
        $u_i \le 1/2$, where $\log(1 - \sqrt v)$ is convex, so Jensen spreads $\sum v_i$ evenly.
        """
        length, gap = 2 * self.scale(d), (p_lower - p_upper) / 2
        diagonal = -math.expm1(math.log1p(-gap) / d)
        return {1.0: length * gap, 2.0: length * diagonal * math.sqrt(d), math.inf: length * diagonal}


@dataclass(frozen=True)
class UniformBall(Noise):
    """Uniform noise in an L2 ball (Yang et al., 2020). Scale: its radius, lambda = sigma sqrt(d + 2)."""

    def scale(self, d: int) -> float:
        """Return the ball's radius."""
        return self.sigma * math.sqrt(d + 2)

    def draw(self, stream: Stream, n: int, d: int) -> Float[Tensor, "n d"]:
        """Draw directions, each times the d-th root of a uniform draw."""
        length = self.scale(d) * np.exp(-host(stream).standard_exponential(n) / d)
        return directions(stream, length, d)

    def direct(self, p_lower: float, p_upper: float, d: int) -> Mapping[float, float]:
        r"""Return the L2 radius by total variation; it is tight for two classes too.

        Two balls at distance r share what lies beyond the middle, so T(r) is the probability of $|u_1| \le r / 2$
        for a point u of the ball, and $u_1^2 / \lambda^2$ follows Beta(1/2, (d + 1)/2).
        """
        half = math.sqrt(betaincinv(0.5, (d + 1) / 2, (p_lower - p_upper) / 2))
        return {2.0: 2 * self.scale(d) * half * (1 - ALLOWANCE)}


@dataclass(frozen=True)
class Pareto(Noise):
    r"""Independent noise of density $\propto (1 + |x| / \lambda)^{-a - 1}$ (Yang et al., 2020).

    Scale: $\lambda = \sigma \sqrt{(a - 1)(a - 2) / 2}$.

    Attributes:
        a: index of the tail; above 2, for a finite sigma.
    """

    a: TailIndex = 3.0

    def scale(self, d: int) -> float:
        """Return lambda."""
        del d
        return self.sigma * math.sqrt((self.a - 1) * (self.a - 2) / 2)

    def draw(self, stream: Stream, n: int, d: int) -> Float[Tensor, "n d"]:
        """Draw quantiles of exponentials, with random signs."""
        noise = exponential(stream, n, d).div_(self.a).expm1_()
        return times(noise.mul_(signs(stream, n, d)), self.scale(d))

    def direct(self, p_lower: float, p_upper: float, d: int) -> Mapping[float, float]:
        """Return the L1 radius by `pareto`."""
        return {1.0: self.scale(d) * odd(partial(heights.pareto, a=self.a), p_lower, p_upper)}


@dataclass(frozen=True)
class ExpP(Noise):
    r"""Independent noise of density $\propto \exp(-|x / \lambda|^q)$ (Yang et al., 2020).

    Scale: $\lambda = \sigma \sqrt{\Gamma(1/q) / \Gamma(3/q)}$.

    Attributes:
        exponent: q; 1 is Laplace, 2 is normal (its L1 radius; `gaussian` has the L2 radius).
    """

    exponent: Annotated[float, between(0.1, 10)] = 1.5

    def scale(self, d: int) -> float:
        """Return lambda."""
        del d
        return self.sigma * math.exp((math.lgamma(1 / self.exponent) - math.lgamma(3 / self.exponent)) / 2)

    def draw(self, stream: Stream, n: int, d: int) -> Float[Tensor, "n d"]:
        """Draw powers of gamma draws, with random signs."""
        noise = torch.from_numpy(host(stream).standard_gamma(1 / self.exponent, (n, d), dtype=np.float32))
        sign = signs(stream, n, d)
        return times(noise.pow_(1 / self.exponent).to(sign.device).mul_(sign), self.scale(d))

    def direct(self, p_lower: float, p_upper: float, d: int) -> Mapping[float, float]:
        """Return the L1 radius by `exp_p`."""
        return {1.0: self.scale(d) * odd(partial(heights.exp_p, q=self.exponent), p_lower, p_upper)}


@dataclass(frozen=True)
class ExpTwo(Noise):
    r"""Noise of density $\propto \exp(-\|x\|_2 / \lambda)$ (Yang et al., 2020). Scale: lambda = sigma / sqrt(d + 1)."""

    def scale(self, d: int) -> float:
        """Return lambda."""
        return self.sigma / math.sqrt(d + 1)

    def draw(self, stream: Stream, n: int, d: int) -> Float[Tensor, "n d"]:
        """Draw directions, each times a gamma draw."""
        return directions(stream, self.scale(d) * host(stream).standard_gamma(d, n), d)

    def direct(self, p_lower: float, p_upper: float, d: int) -> Mapping[float, float]:
        """Return the L2 radius by `exp_two`."""
        return {2.0: self.scale(d) * odd(partial(heights.exp_two, d=d), p_lower, p_upper)}


@dataclass(frozen=True)
class ExpInf(Noise):
    r"""Noise of density $\propto \|x\|_\infty^{-j} \exp(-\|x / \lambda\|_\infty^k)$ (Yang et al., 2020).

    Scale: $\sigma^2 = \lambda^2 (d + 2) / 3d \cdot \Gamma((d - j + 2)/k) / \Gamma((d - j)/k)$.

    Attributes:
        k: exponent of the norm.
        j: power of the pole at 0; at least j + 2 dimensions are needed, or any number if j is 0.
    """

    k: Annotated[float, between(0.1, 100)] = 1.0
    j: Annotated[float, between(0, math.inf, "left")] = 0.0

    def scale(self, d: int) -> float:
        """Return lambda."""
        shape = self._freedom(d) / self.k
        moment = (d + 2) / (3 * d) * heights.gamma_ratio(shape, 2 / self.k)
        return self.sigma / math.sqrt(moment)

    def draw(self, stream: Stream, n: int, d: int) -> Float[Tensor, "n d"]:
        """Draw points on the surface of a cube, each times the root of a gamma draw."""
        length = self.scale(d) * host(stream).standard_gamma(self._freedom(d) / self.k, n) ** (1 / self.k)
        return cubes(stream, length, d)

    def direct(self, p_lower: float, p_upper: float, d: int) -> Mapping[float, float]:
        r"""Return L1 by total variation, linear in p, and Linf, if j = 0, by `exp_inf_linf` where that has the digits.

        Along each line parallel to an axis the density rises to the middle and falls, so
        $T(\delta) \le M \|\delta\|_1$ with $M = \int q(0, y) dy$ over the others,
        $1/M = \lambda \cdot 2d / (d - 1) \cdot \Gamma((d - j)/k) / \Gamma((d - j - 1)/k)$.
        """
        scale, free, k = self.scale(d), self._freedom(d), self.k
        if self.j == 0:  # (d - 1) Gamma((d - 1)/k) = k Gamma((d - 1)/k + 1), which d = 1 needs
            inverse = 2 * d / k * heights.gamma_ratio((d - 1) / k + 1, 1 / k - 1)
        else:
            inverse = 2 * d / (d - 1) * heights.gamma_ratio((free - 1) / k, 1 / k)
        radii = {1.0: scale * inverse * (p_lower - p_upper) / 2}
        if self.j == 0 and k == 1:
            radii[math.inf] = scale * odd(lambda tail: -math.log(2 * tail), p_lower, p_upper)
        elif self.j == 0 and (k > 1 or d / k <= heights.SERIES):
            linf = partial(heights.exp_inf_linf, k=k, d=d)
            radii[math.inf] = scale * odd_integral(linf, p_lower, p_upper, LOOSE)
        return radii

    def _freedom(self, d: int) -> float:
        if self.j > 0 and d - self.j < 2:
            raise UnsupportedError(f"exp-inf with j = {self.j:g} needs at least j + 2 dimensions, not {d}")
        return d - self.j


@dataclass(frozen=True)
class PowInf(Noise):
    r"""Noise of density $\propto (1 + \|x / \lambda\|_\infty)^{-d - a}$ (Yang et al., 2020, with d + a for their a).

    Scale: $\sigma^2 = \lambda^2 (d + 1)(d + 2) / (3 (a - 1)(a - 2))$.

    Attributes:
        a: index of the norm's tail; above 2, for a finite sigma.
    """

    a: TailIndex = 3.0

    def scale(self, d: int) -> float:
        """Return lambda."""
        return self.sigma * math.sqrt(3 * (self.a - 1) * (self.a - 2) / ((d + 1) * (d + 2)))

    def draw(self, stream: Stream, n: int, d: int) -> Float[Tensor, "n d"]:
        """Draw points on the surface of a cube, each times a ratio of gamma draws."""
        gamma = host(stream)
        length = self.scale(d) * gamma.standard_gamma(d, n) / gamma.standard_gamma(self.a, n)
        return cubes(stream, length, d)

    def direct(self, p_lower: float, p_upper: float, d: int) -> Mapping[float, float]:
        r"""Return L1 by total variation, as `ExpInf`, with $1/M = 2 \lambda d / a$, and Linf by `pow_inf_linf`."""
        scale = self.scale(d)
        linf = partial(heights.pow_inf_linf, a=self.a, d=d)
        return {
            1.0: scale * d / self.a * (p_lower - p_upper),
            math.inf: scale * odd_integral(linf, p_lower, p_upper, LOOSE),
        }


NOISES: dict[str, type[Noise]] = {
    "gaussian": Gaussian,
    "laplace": Laplace,
    "uniform": Uniform,
    "uniform-ball": UniformBall,
    "pareto": Pareto,
    "exp-p": ExpP,
    "exp-2": ExpTwo,
    "exp-inf": ExpInf,
    "pow-inf": PowInf,
}
"""Every noise by name. Those of Yang et al. that need tables of level sets are not here: exp-2 with a pole or another
exponent, pow-2, and exp-1 with another exponent than 1 (Laplace)."""


def uniform_l1_in_box(p_lower: float, p_upper: float, x: Float[np.ndarray, " d"], half_side: float) -> float:
    r"""Return the L1 radius of box noise against inputs of [0, 1]^d alone (Voráček and Hein, 2023), rounded down.

    A perturbation moves x_i by at most $b_i = \max(x_i, 1 - x_i)$. Among all of L1 norm R the total variation
    $1 - \prod (1 - |\delta_i| / 2\lambda)$ is largest where the largest b_i are used up one after the other, as
    that vector majorises the rest and the product is Schur-concave. It is at least the radius without a box.

    Args:
        p_lower: lower bound of the class's probability.
        p_upper: upper bound of every other class's.
        x: the input.
        half_side: the lambda of noise on [-lambda, lambda]^d, `Uniform.scale`.

    Returns:
        The radius: 0 if nothing is certified, infinity if no input of the box is farther than what is.

    Raises:
        ValueError: x leaves [0, 1].
    """
    x = np.asarray(x, dtype=np.float64)
    if not ((x >= 0) & (x <= 1)).all():
        raise ValueError("the radius within [0, 1]^d is for inputs within it")
    if not (0 <= p_upper < p_lower <= 1):
        return 0.0
    length, keep = 2 * half_side, 1 - (p_lower - p_upper) / 2
    room = np.sort(np.maximum(x, 1 - x))[::-1]
    products = np.concatenate([[1.0], np.cumprod(np.maximum(1 - room / length, 0))])
    spent = np.concatenate([[0.0], np.cumsum(room)])
    used = int((products[1:] * (1 - len(x) * 1e-15) > keep).sum())  # coordinates used up
    if used == len(x):
        return math.inf
    rest = min(room[used], length * (1 - keep / products[used]))
    return max(0.0, float((spent[used] + rest) * (1 - ALLOWANCE) - length * (used + 4) * 2.0**-52))
