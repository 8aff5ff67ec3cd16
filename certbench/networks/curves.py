"""Other curved functions: exponentials, logarithms, powers, waves."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from certbench.errors import UnsupportedError
from certbench.networks.activations import CONCAVE, CONVEX, LINEAR, Activation
from certbench.networks.piecewise_linear import IDENTITY, piecewise_linear
from certbench.numerics.rounding import TINY, UNIT


@dataclass(frozen=True)
class Elu(Activation):
    """scale z right of 0 and scale alpha (exp(rate z) - 1) left of it: ELU, SELU and CELU (rate = 1 / alpha).

    Convex left of 0; the kink at 0 bends down where alpha rate > 1.

    Attributes:
        alpha: minus the limit at minus infinity, over the scale; not negative.
        scale: the slope right of 0; positive.
        rate: factor of z in the exponent (torch's input_scale); positive.
    """

    alpha: float = 1.0
    scale: float = 1.0
    rate: float = 1.0

    joints = (0.0,)
    bends = (CONVEX, LINEAR)

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            UnsupportedError: a parameter's sign makes another function of it.
        """
        if not (self.alpha >= 0 and self.scale > 0 and self.rate > 0 and self.alpha * self.scale * self.rate < 1e100):
            raise UnsupportedError(f"{self}: alpha must not be negative, and scale and rate must be positive")

    def value(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f(z)."""
        left = (self.scale * self.alpha) * (z.clamp(max=0) * self.rate).expm1()
        return torch.where(z > 0, self.scale * z, left)

    def slope(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f'(z), at 0 that of its left."""
        left = (self.scale * self.alpha * self.rate) * (z.clamp(max=0) * self.rate).exp()
        return torch.where(z > 0, self.scale, left)

    def slope_error(self, z: Float[Tensor, "..."], slope: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Bound the error of `slope`, with that of the exponent."""
        return UNIT * (32 + 4 * (self.rate * -z).clamp(0, 1e3)) * slope + TINY

    def touch(self, slope: Float[Tensor, "..."], piece: int, low: Tensor) -> Float[Tensor, "..."]:
        """Return the point left of 0 where f' is `slope`."""
        height = self.scale * self.alpha * self.rate
        return (slope / height if height else slope).log() / self.rate


@dataclass(frozen=True)
class Softplus(Activation):
    r"""$\log(1 + \exp(\beta z)) / \beta$, convex, with the slope $\sigma(\beta z)$.

    torch returns z itself where $\beta z$ exceeds a threshold: less by at most $\exp(-\beta z) / \beta$. `excess` says
    so, and lines enclose both functions. (The jump at the threshold, of 2e-9 for torch's defaults, is in no bound of
    slopes.)

    Attributes:
        beta: the factor of z; positive.
        threshold: the largest beta z for which the logarithm is computed.
    """

    beta: float = 1.0
    threshold: float = 20.0

    bends = (CONVEX,)
    limits = (0.0, math.inf)

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            UnsupportedError: beta is not positive, or the threshold is negative.
        """
        if not (1e-100 < self.beta < 1e100 and self.threshold >= 0):
            raise UnsupportedError(f"{self}: beta must be positive, and the threshold not negative")

    def value(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f(z)."""
        return z.clamp(min=0) + (z.abs() * -self.beta).exp().log1p() / self.beta

    def slope(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f'(z)."""
        return torch.sigmoid(self.beta * z)

    def touch(self, slope: Float[Tensor, "..."], piece: int, low: Tensor) -> Float[Tensor, "..."]:
        """Return the point where f' is `slope`."""
        return torch.logit(slope) / self.beta

    def error(self, z: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Bound the error of `value`, with that of the exponent."""
        exponent = (self.beta * z.abs()).clamp(max=1e3)
        return UNIT * (16 * value.abs() + 4 * exponent * (-exponent).exp() / self.beta) + TINY

    def slope_error(self, z: Float[Tensor, "..."], slope: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Bound the error of `slope`, with that of the exponent."""
        return UNIT * (32 + 4 * (self.beta * -z).clamp(0, 1e3)) * slope + TINY

    def excess(self, low: Float[Tensor, "..."], high: Float[Tensor, "..."]) -> Tensor | None:
        """Bound how far torch falls below f on [low, high]."""
        start = torch.maximum(self.beta * low, low.new_tensor(self.threshold))
        fall = (-start).exp() * ((1 + 2.0**-20) / self.beta) + TINY
        return torch.where(self.beta * high >= self.threshold * (1 - 2.0**-20), fall, 0.0)


@dataclass(frozen=True)
class LogSigmoid(Activation):
    r"""$-\log(1 + \exp(-z))$, concave, with the slope $\sigma(-z)$."""

    bends = (CONCAVE,)
    limits = (-math.inf, 0.0)

    def value(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f(z)."""
        return z.clamp(max=0) - (-z.abs()).exp().log1p()

    def slope(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f'(z)."""
        return torch.sigmoid(-z)

    def touch(self, slope: Float[Tensor, "..."], piece: int, low: Tensor) -> Float[Tensor, "..."]:
        """Return the point where f' is `slope`."""
        return -torch.logit(slope)


@dataclass(frozen=True)
class Exp(Activation):
    """exp(z), convex."""

    bends = (CONVEX,)
    limits = (0.0, math.inf)

    def value(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f(z)."""
        return z.exp()

    def slope(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f'(z)."""
        return z.exp()

    def touch(self, slope: Float[Tensor, "..."], piece: int, low: Tensor) -> Float[Tensor, "..."]:
        """Return the point where f' is `slope`."""
        return slope.log()


@dataclass(frozen=True)
class Log(Activation):
    """log(z) on z > 0, concave."""

    bends = (CONCAVE,)

    def defined(self, low: Float[Tensor, "..."], high: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Say where [low, high] is positive."""
        return (low > 0) & (low <= high)

    def value(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f(z)."""
        return z.log()

    def slope(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f'(z)."""
        return 1 / z

    def touch(self, slope: Float[Tensor, "..."], piece: int, low: Tensor) -> Float[Tensor, "..."]:
        """Return the point where f' is `slope`."""
        return 1 / slope


@dataclass(frozen=True)
class Power(Activation):
    """z^p: square, root (p = 1/2), reciprocal (p = -1), reciprocal root (p = -1/2) and all others but p = 0 and p = 1.

    Defined for z > 0; at 0 too if p > 0; for z < 0 too if p is an integer. f'' = p (p - 1) z^(p - 2).

    Attributes:
        exponent: the real number p.
    """

    exponent: float

    @property
    def name(self) -> str:
        """Return the power, for messages."""
        return f"z^{self.exponent:g}"

    def __post_init__(self) -> None:
        """Check the exponent.

        Raises:
            UnsupportedError: it is 0 or 1, or not between -100 and 100.
        """
        if self.exponent in (0, 1) or not abs(self.exponent) <= 100:
            raise UnsupportedError(f"z^{self.exponent}: write exponents 0 and 1 as linear functions; at most 100 else")

    @property
    def _whole(self) -> bool:
        return float(self.exponent).is_integer()

    @property
    def _even(self) -> bool:
        return self.exponent % 2 == 0

    @property
    def joints(self) -> tuple[float, ...]:  # type: ignore[override]
        """Return 0 where both of its sides belong to the domain."""
        return (0.0,) if self._whole and not self.turning else ()

    @property
    def bends(self) -> tuple[int, ...]:  # type: ignore[override]
        """Return how the pieces bend."""
        right = CONVEX if self.exponent * (self.exponent - 1) > 0 else CONCAVE
        return (right if self._even else -right, right) if self.joints else (right,)

    @property
    def turning(self) -> tuple[float, ...]:  # type: ignore[override]
        """Return 0 for even powers."""
        return (0.0,) if self._even and self.exponent > 0 else ()

    @property
    def limits(self) -> tuple[float, float]:  # type: ignore[override]
        """Return 0 as the lower limit, but for odd powers."""
        return (0.0 if self._even or not self._whole else -math.inf, math.inf)

    def defined(self, low: Float[Tensor, "..."], high: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Say where [low, high] lies in the domain."""
        positive = low >= 0 if self.exponent > 0 else low > 0
        if self._whole:
            positive = low <= high if self.exponent > 0 else positive | (high < 0)
        return positive & (low <= high)

    def value(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f(z)."""
        return z**self.exponent

    def slope(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f'(z)."""
        return self.exponent * (z + 0.0) ** (self.exponent - 1)  # -0 counts as 0

    def slope_error(self, z: Float[Tensor, "..."], slope: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Bound the error of `slope`; a rounding of p - 1 counts |log z| < 746 times."""
        exact = self._whole or 0.5 <= self.exponent <= 2
        return UNIT * (32 if exact else 32 + 1600 * (1 + abs(self.exponent))) * slope.abs() + TINY

    def touch(self, slope: Float[Tensor, "..."], piece: int, low: Tensor) -> Float[Tensor, "..."]:
        """Return the point of a piece where f' is `slope`."""
        ratio = slope / self.exponent
        root = ratio.abs() ** (1 / (self.exponent - 1))
        return -root if piece == 0 and self.joints else torch.where(ratio < 0, -root, root)


def power(exponent: float) -> Activation:
    """Return z^p as its class; 1 and z itself for p = 0 and p = 1.

    Raises:
        UnsupportedError: p is not between -100 and 100.
    """
    if exponent == 1:
        return IDENTITY
    return piecewise_linear([], [0.0], 1.0, "Constant") if exponent == 0 else Power(float(exponent))


@dataclass(frozen=True)
class Sine(Activation):
    """sin(z), or cos(z) with `quarter`; concave and convex by turns, with a joint at each zero.

    Intervals longer than a period, or with an end beyond 2^20, are enclosed by [-1, 1].

    Attributes:
        quarter: whether it is the cosine.
    """

    quarter: bool = False

    bends = (CONCAVE, CONVEX, CONCAVE, CONVEX)
    limits = (-1.0, 1.0)

    @property
    def name(self) -> str:
        """Return the function's name, for messages."""
        return "Cos" if self.quarter else "Sin"

    @property
    def _shift(self) -> float:
        """Return where the first concave piece begins."""
        return -math.pi / 2 if self.quarter else 0.0

    def _period(self, low: Tensor) -> Tensor:
        """Return the start of the last concave piece that begins at or before `low`, up to rounding."""
        return ((low - self._shift) / (2 * math.pi)).floor()

    def joints_near(self, low: Float[Tensor, "..."]) -> Float[Tensor, "3 ..."]:
        """Return three zeros; the first follows the one where the period of `low` begins."""
        first = self._period(low)
        return torch.stack([first * (2 * math.pi) + (self._shift + i * math.pi) for i in (1, 2, 3)])

    def turning_near(self, low: Float[Tensor, "..."]) -> Float[Tensor, "4 ..."]:
        """Return the four extremes from the same period on."""
        first = self._period(low)
        return torch.stack([first * (2 * math.pi) + (self._shift + (i + 0.5) * math.pi) for i in range(4)])

    def covered(self, low: Float[Tensor, "..."], high: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Say where [low, high] is no longer than a period and not too far out."""
        return (low <= high) & (high - low <= 6.28) & (low.abs() <= 2**20) & (high.abs() <= 2**20)

    def value(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f(z)."""
        return z.cos() if self.quarter else z.sin()

    def slope(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return f'(z)."""
        return -z.sin() if self.quarter else z.cos()

    def error(self, z: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Bound the error of `value`, absolutely."""
        return torch.full_like(value, 16 * UNIT)

    def slope_error(self, z: Float[Tensor, "..."], slope: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Bound the error of `slope`, absolutely."""
        return torch.full_like(slope, 16 * UNIT)

    def touch(self, slope: Float[Tensor, "..."], piece: int, low: Tensor) -> Float[Tensor, "..."]:
        """Return about the point of a piece where f' is `slope`."""
        angle = (slope if piece % 2 == 0 else -slope).clamp(-1, 1).acos()
        return self._period(low) * (2 * math.pi) + (self._shift + piece * math.pi) + angle
