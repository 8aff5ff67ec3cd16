r"""Gaussian smoothing that rounding cannot undo: integer noise on the grid of the inputs (Voráček and Hein, 2023).

A float sum x + noise remembers x in its last bits, and a base classifier that reads them makes ordinary certificates
false. Here inputs and adversary live on the grid {0, 1/m, ..., 1} (m = 255 for images), the noise is
$\nu = \operatorname{round}(m \, \mathcal N(0, \sigma^2))$, integers are added, and their sum is divided by m once.
round(m x + m e) = m x + round(m e) for m x whole, so the classifier sees a function of x + e. The certificate is
Gaussian smoothing's, for the classifier behind the rounding, and holds for every x' on the grid.

The sampler compares 63 random bits with thresholds $2^{63} \Phi((i + 1/2) / (m \sigma))$. The errors of these, and the
tails beyond 9 standard deviations, are counted as total variation and taken off the probabilities.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import ndtr
from torch import Tensor

from certbench.core.ranges import PositiveInt
from certbench.errors import ConfigError, NumericalError
from certbench.verifiers.smoothing.noise.base import Noise, Stream, integers
from certbench.verifiers.smoothing.noise.families import Gaussian

BITS, GUIDE = 63, 14
"""Number of random bits of a draw, and of those that a table looks up first."""


@dataclass(frozen=True)
class IntegerGaussian(Noise):
    """Rounded Gaussian noise on the grid of the inputs, added in integers (Voráček and Hein, 2023): sound in floats.

    Attributes:
        sigma: standard deviation of the Gaussian noise before it is rounded, in units of the input.
        grid: number of steps between 0 and 1. Inputs off the grid are refused, and certificates are about
            the inputs on it.
    """

    grid: PositiveInt = 255

    norms: ClassVar[frozenset[float]] = frozenset({1.0, 2.0, math.inf})
    additive: ClassVar[bool] = False

    def check_together(self) -> None:
        """Refuse noise whose table of thresholds would be too long."""
        if self.grid * self.sigma * 10 > 2**20:
            raise ConfigError("the noise spans more than a million steps of the grid", ("grid",))

    def scale(self, d: int) -> float:
        """Return sigma."""
        del d
        return self.sigma

    def integers(self, stream: Stream, n: int, d: int) -> Int[Tensor, "n d"]:
        """Draw the noise in steps of the grid."""
        bits = integers(stream, 2**BITS, n, d)
        thresholds, first, last = _table(self.grid * self.sigma, bits.device)
        cell = bits >> (BITS - GUIDE)
        found = first[cell]
        open_ = found != last[cell]  # a threshold lies inside the cell
        found[open_] = torch.searchsorted(thresholds, bits[open_], right=True)
        return found - len(thresholds) // 2

    def draw(self, stream: Stream, n: int, d: int) -> Float[Tensor, "n d"]:
        """Draw the noise in units of the input; certificates rest on `perturb`, which adds integers."""
        return (self.integers(stream, n, d).double() / self.grid).float()

    def perturb(self, point: Float[Tensor, " d"], stream: Stream, n: int) -> Float[Tensor, "n d"]:
        """Return noisy inputs, each a function of integers alone.

        Raises:
            NumericalError: the input does not lie on the grid.
        """
        whole = (point.double() * self.grid).round()
        if not bool(((whole / self.grid).float() == point.float()).all()):  # images come in float32
            raise NumericalError(f"the input is not on the grid of 1/{self.grid}; round it, or choose another grid")
        sums = self.integers(stream, n, len(point)) + whole.to(torch.int64)
        return (sums.double() / self.grid).to(point.dtype)

    def direct(self, p_lower: float, p_upper: float, d: int) -> Mapping[float, float]:
        """Return the Gaussian's radius, after the sampler's total variation is taken off either probability."""
        lost = variation(self.grid * self.sigma, d)
        if not p_upper + lost < p_lower - lost:
            return {2.0: 0.0}
        return Gaussian(self.sigma).direct(p_lower - lost, p_upper + lost, d)


def variation(deviation: float, d: int) -> float:
    """Bound the total variation between d draws of the sampler and of the noise that it stands for.

    A threshold is off by at most 2^-50 of itself (SciPy's normal distribution function is accurate to a few roundings)
    and by one unit of 2^-63. The thresholds of both tails sum up to less than the deviation plus 1.
    """
    steps = 2 * (10 * deviation + 2)
    return d * (2.0**-49 * (deviation + 1) + steps * 2.0**-62)


@cache
def _table(deviation: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return thresholds of the uniform draw, and by its first bits the first and the last integer that it can be."""
    reach = math.ceil(10 * deviation) + 1
    lower = np.floor(ndtr((np.arange(-reach, 0) + 0.5) / deviation) * 2.0**BITS).astype(np.uint64)
    lower = lower[lower > 0]  # below a threshold of 0 there is no draw, by symmetry none above its mirror image
    thresholds = np.concatenate([lower, np.uint64(2**BITS) - lower[::-1]]).astype(np.int64)
    starts = np.arange(2**GUIDE, dtype=np.int64) << (BITS - GUIDE)
    ends = starts + (2 ** (BITS - GUIDE) - 1)
    first, last = (torch.from_numpy(np.searchsorted(thresholds, at, side="right")) for at in (starts, ends))
    return torch.from_numpy(thresholds).to(device), first.to(device), last.to(device)
