r"""Smoothed scores in [0, 1] instead of votes (Salman, Li, Razenshteyn, Zhang, Zhang, Bubeck and Yang, 2019).

The smoothed scores are $\hat f_c(x) = E[f_c(x + N(0, \sigma^2 I))]$ with $f_c$ in [0, 1], say a softmax. The certified
function is $\arg\max_c \hat f_c$: another classifier than the majority vote, and than the softmax of another
temperature.

Scores can be turned into votes: draw one class from the distribution f(x + noise) once per noise (`sample_classes`).
Each draw votes for c with probability exactly $\hat f_c(x)$. So the counts are multinomial, Clopper and Pearson's
bounds and all rules for votes hold, and their radii are certificates of $\arg\max_c \hat f_c$.
"""

import math

from scipy.special import ndtri

from certbench.verifiers.smoothing.noise.base import TINY, odd

ROUNDING = 1e-12
"""Share that is taken off radii, relative to the quantiles that they are made of."""


def height(tail: float) -> float:
    r"""Return $-\Phi^{-1}$ of a tail's probability: how far away the half-space of this probability begins."""
    return -float(ndtri(tail))


def radius(low: float, high: float, sigma: float) -> float:
    r"""Return the L2 radius $\frac\sigma2(\Phi^{-1}(low) - \Phi^{-1}(high))$, rounded down; 0 unless low > high.

    Lemma 2 of Salman et al.: $\Phi^{-1}(\hat f)$ is $1/\sigma$-Lipschitz. For votes it is Theorem 1 of Cohen et al.

    Args:
        low: lower bound of the top class's expected score.
        high: upper bound of any other class's.
        sigma: standard deviation of the noise.
    """
    _check(low, high)
    if not (low > high and low > TINY):
        return 0.0
    return max(odd(height, low, high, allowance=ROUNDING, scale=sigma), 0.0)


def lipschitz_constant(sigma: float) -> float:
    r"""Return the tight L2 Lipschitz constant of smoothed scores: $1/(\sigma\sqrt{2\pi})$.

    The gradient is $E[f(x+\eta)\,\eta]/\sigma^2$, longest along u for f = 1 where $u\cdot\eta > 0$:
    $E[\max(u\cdot\eta, 0)]/\sigma^2$. Lemma 1 of Salman et al. has twice that, $\sqrt{2/\pi}/\sigma$.
    """
    return 1 / (sigma * math.sqrt(2 * math.pi))


def lipschitz_radius(low: float, high: float, sigma: float) -> float:
    r"""Return the L2 radius $(low - high) / (2L)$ by Lemma 1 with the tight constant L; never above `radius`."""
    _check(low, high)
    return max((low - high) / (2 * lipschitz_constant(sigma)) * (1 - ROUNDING), 0.0)


def _check(low: float, high: float) -> None:
    if not (0 <= low <= 1 and 0 <= high <= 1):
        raise ValueError(f"{low} and {high} bound no scores in [0, 1]")
