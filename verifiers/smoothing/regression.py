r"""Percentile smoothing of regressors (Chiang, Curry, Abdelkader, Kumar, Dickerson and Goldstein, 2020).

The certified function is $h_p(x)$, the p-quantile of each output of f(x + N(0, sigma^2 I)), the median by default.
Within a ball it stays between two other quantiles at its centre,
$h_p(x + \delta) \in [h_{\underline p}(x), h_{\overline p}(x)]$ with $\Phi(\Phi^{-1}(p) \mp \epsilon/\sigma)$ for
$\|\delta\|_2 \le \epsilon$. Order statistics of draws bound these.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import ndtr, ndtri
from scipy.stats import binom
from torch import Tensor

from certbench.core.classifier import Classifier
from certbench.core.inputs import check_inputs, input_seed
from certbench.core.threat import L2, ThreatModel
from certbench.errors import ConfigError, UnsupportedError
from certbench.verifiers.smoothing.noise.families import Gaussian

ROWS, ENTRIES = 1000, 2**22
"""Largest number of rows in a forward pass, and of entries. Fixed for an input shape, because outputs differ in the
last bits between batch shapes."""

PERCENTILE = 0x706572
"""Phase of the sampling, other than those that smooth classifiers."""

ROUNDING = 1e-10
"""Room for the error of tail probabilities, relative; and of the two percentiles, in units of 1e-2."""


def order_statistics(n: int, eps: float, sigma: float, alpha: float, percentile: float = 0.5) -> tuple[int, int]:
    r"""Say which of n sorted samples, counted from 1, bound the percentile over an L2 ball; 0 is -inf, n + 1 is +inf.

    With confidence 1 - alpha, the lower $K_{(l)}$ is at most $h_{\underline p}$: it lies above only if fewer than l of
    n draws are at most that quantile, so $P[Bin(n, \underline p) \le l - 1] \le \alpha/2$ for the largest l. The upper
    $K_{(u)}$ is at least $h_{\overline p}$: it lies below only if u draws or more do, so
    $P[Bin(n, \overline p) \ge u] \le \alpha/2$ for the smallest u.

    The published code indexes an array that starts at 0 with these numbers, so its lower bound is the next larger
    sample, which the confidence does not cover.

    Args:
        n: number of draws.
        eps: L2 radius of the ball.
        sigma: standard deviation of the noise.
        alpha: probability that the interval is wrong.
        percentile: the p of $h_p$, between 0 and 1.

    Raises:
        ConfigError: a number is impossible.
    """
    if not (n >= 1 and 0 <= eps < math.inf and 0 < sigma < math.inf):
        raise ConfigError(f"percentile smoothing needs n >= 1, eps >= 0 and sigma > 0, not {n}, {eps}, {sigma}")
    if not (0 < alpha < 1 and 0 < percentile < 1):
        raise ConfigError(f"alpha and percentile must lie between 0 and 1, not {alpha} and {percentile}")
    centre, shift = float(ndtri(percentile)), eps / sigma
    below = float(ndtr(centre - shift)) * (1 - ROUNDING / 100)
    above = min(float(ndtr(centre + shift)) * (1 + ROUNDING / 100), 1.0)
    spent = alpha / 2 * (1 - ROUNDING)
    lower, missing = 0, n + 1  # P[Bin <= lower - 1] <= spent, but not at `missing`
    while missing - lower > 1:
        middle = (lower + missing) // 2
        lower, missing = (middle, missing) if binom.cdf(middle - 1, n, below) <= spent else (lower, middle)
    upper, missing = n + 1, 0
    while upper - missing > 1:
        middle = (upper + missing) // 2
        upper, missing = (middle, missing) if binom.sf(middle - 1, n, above) <= spent else (upper, middle)
    return lower, upper


def percentile_bounds(
    samples: Float[Tensor, "n outputs"], eps: float, sigma: float, alpha: float, percentile: float = 0.5
) -> tuple[Float[Tensor, " outputs"], Float[Tensor, " outputs"]]:
    """Bound each output's percentile over the L2 ball of radius eps, each interval with confidence 1 - alpha.

    Args:
        samples: outputs at n independent noisy copies of the input, in any order. One that is NaN counts as -inf for
            the lower and as +inf for the upper bound.
        eps: radius of the ball.
        sigma: standard deviation of the noise.
        alpha: probability that an output's interval is wrong.
        percentile: between 0 and 1.

    Raises:
        ConfigError: as `order_statistics`.
    """
    low, high = order_statistics(len(samples), eps, sigma, alpha, percentile)
    sides = []
    for index, end in ((low, -torch.inf), (high, torch.inf)):
        if 1 <= index <= len(samples):
            filled = torch.where(samples.isnan(), end, samples)
            sides.append(filled.sort(dim=0).values[index - 1])
        else:
            sides.append(torch.full_like(samples[0], end))
    return sides[0], sides[1]


def smoothed_output_bounds(
    regressor: Classifier,
    x: Float[Tensor, "n ..."],
    eps: float,
    sigma: float,
    n: int = 10_000,
    alpha: float = 0.001,
    seed: int = 0,
    *,
    percentile: float = 0.5,
    threat: ThreatModel = L2,
) -> tuple[Float[Tensor, "n outputs"], Float[Tensor, "n outputs"]]:
    r"""Bound the percentile-smoothed regressor over a ball about each input, from below and from above.

    Per input, all outputs together, the bounds are wrong with probability at most alpha (divided among the outputs).
    They bound the smoothed outputs, not the regressor's own, and assume Gaussian noise and real arithmetic.

    Args:
        regressor: a `Regressor` (or a classifier, whose logits are then bounded).
        x: `(n, *input_shape)`.
        eps: radius of the ball.
        sigma: standard deviation of the noise, in units of the input.
        n: draws per input.
        alpha: probability that an input's bounds are wrong.
        seed: seed of the noise; an input's draws depend on it and on the input alone.
        percentile: the quantile that is certified.
        threat: the norm of the ball. An L1 ball lies in the L2 ball of its radius, an Linf ball in that of
            $\sqrt d$ times its radius.

    Raises:
        ConfigError: inputs or numbers are impossible.
    """
    x, threat = check_inputs(regressor, x, threat)
    if threat.p == 0:
        raise UnsupportedError("an L0 ball lies in no L2 ball; the norm is 1, 2 or inf")
    widest = eps
    if threat.p == math.inf:
        widest = eps * math.sqrt(math.prod(regressor.input_shape)) * (1 + 1e-12)
    outputs = regressor.num_classes
    order_statistics(n, widest, sigma, alpha / outputs, percentile)  # refuses bad numbers before any draw
    bounds = [
        percentile_bounds(_samples(regressor, point, sigma, n, seed), widest, sigma, alpha / outputs, percentile)
        for point in x.to(torch.float64)
    ]
    if not bounds:
        return torch.zeros(0, outputs, dtype=torch.float64), torch.zeros(0, outputs, dtype=torch.float64)
    return torch.stack([low for low, _ in bounds]), torch.stack([high for _, high in bounds])


def _samples(regressor: Classifier, point: Tensor, sigma: float, n: int, seed: int) -> Float[Tensor, "n outputs"]:
    """Return the outputs at n noisy copies of a point, on the CPU in float64."""
    stream = np.random.Generator(np.random.SFC64(np.random.SeedSequence([input_seed(seed, point), PERCENTILE])))
    base = point.to(regressor.device, regressor.dtype)
    rows = max(1, min(ROWS, ENTRIES // max(point.numel(), 1)))
    found = []
    for start in range(0, n, rows):
        noise = torch.from_numpy(Gaussian(sigma).sample(stream, rows, point.numel()))
        noisy = noise.view(rows, *point.shape).to(base.device, base.dtype).add_(base)
        found.append(regressor(noisy)[: n - start].to("cpu", torch.float64))
    return torch.cat(found)
