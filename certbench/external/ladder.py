r"""Inference of the n and alpha of a log of randomized smoothing (Cohen, Rosenfeld and Kolter, 2019).

A radius of CERTIFY is a rung of the ladder $\sigma \Phi^{-1}(p_k)$, where $p_k$ is the lower confidence bound
(Clopper and Pearson) at level alpha for k of n draws. The rungs lie far apart near the top, k = n, and the radii near 0
are printed finely, so that radii of three digits still tell which n and alpha they come from.
$P[\mathrm{Bin}(n, p) \ge k]$ grows with p and is alpha at $p_k$; this tells whether a rung lies between two radii
without computing it.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from certbench.external.findings import Finding, Severity

DRAWS = (100, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000)
"""Values of n that are tried beside a claimed one."""

ALPHAS = (0.1, 0.05, 0.01, 0.005, 0.001, 0.0005, 0.0001, 0.00001)
"""Values of alpha that are tried beside a claimed one; 0.0005 is a two-sided 0.001."""

USUAL = 0.001
"""Alpha of most papers."""

SIGMAS = (0.12, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Values of sigma that are tried if the log does not state its own."""

PILE = 5
"""Number of rows that must share the largest radius, more than share any other, before it is taken for k = n. This is a
judgement: two consecutive counts are about equally frequent, unless they are cut off at n."""

CHANCE = 0.1
"""Largest chance that one of all tried ladders fits by luck; above it, a fit tells nothing. This is a judgement."""

SLACK = 2e-7
"""Relative allowance for the arithmetic of the log's author, in single precision at worst."""


@dataclass(frozen=True)
class Printed:
    """A radius as it was printed, and its lines.

    Attributes:
        value: the printed value.
        half: half a unit of the last digit: the computed radius lies within value +- half.
        lines: lines of the log that have it.
    """

    value: float
    half: float
    lines: tuple[int, ...] = (0,)

    @property
    def rows(self) -> int:
        """Number of rows that have it."""
        return len(self.lines)


def total(radii: Sequence[Printed]) -> int:
    """Return the number of rows that have one of these radii."""
    return sum(radius.rows for radius in radii)


def printed(texts: Sequence[str], first: int = 1) -> list[Printed]:
    """Return the distinct positive radii of a column, descending, with the half unit that its format leaves open.

    If all numbers of a column have the same number of decimals, it is printed to that many. Else the longest number
    tells how many significant digits there are; Python's format drops zeros at the end.

    Args:
        texts: the column.
        first: line of its first number.
    """
    fixed = decimals(texts)
    lines: dict[float, list[int]] = {}
    digits = 0
    for line, text in enumerate(texts, first):
        if 0 < float(text) < math.inf:
            lines.setdefault(float(text), []).append(line)
            digits = max(digits, _significant(text))
    result = []
    for value in sorted(lines, reverse=True):
        exponent = -fixed if fixed is not None else int(f"{value:e}".partition("e")[2]) - digits + 1
        result.append(Printed(value, 0.5 * 10.0**exponent + SLACK * value, tuple(lines[value])))
    return result


def decimals(texts: Sequence[str]) -> int | None:
    """Return the number of decimals, if all numbers of a column have the same: a small one may then be printed as 0."""
    found = {len(text.partition(".")[2]) for text in texts}
    return found.pop() if len(found) == 1 and not any("e" in text.lower() for text in texts) else None


def _significant(text: str) -> int:
    return len(text.lower().partition("e")[0].replace(".", "").lstrip("+-0"))


@dataclass(frozen=True)
class RadiusLadder:
    """The radii that n draws at level alpha can give with noise of standard deviation sigma."""

    sigma: float
    n: int
    alpha: float

    def __str__(self) -> str:
        """Return n and alpha as papers write them."""
        return f"n = {self.n}, alpha = {self.alpha:g}"

    def rung(self, k: int) -> float:
        """Return the radius if k of the n draws agree."""
        from scipy.special import ndtri

        from certbench.verifiers.smoothing.confidence import binomial

        return self.sigma * float(ndtri(binomial.lower(k, self.n, self.alpha)))

    def luck(self, radii: Sequence[Printed]) -> float:
        """Return the chance that unrelated numbers all lie on rungs: the product of rungs per interval, if below 1."""
        z = [radius.value / self.sigma for radius in radii]
        rungs = (self.n / self.sigma * math.exp(-t * t / 2) / math.sqrt(2 * math.pi) for t in z)
        return math.prod(min(1.0, 2 * r.half * density) for r, density in zip(radii, rungs, strict=True))

    def fit(self, radii: Sequence[Printed]) -> "Fit":
        """Say which printed radii are rungs; a billionth of alpha is allowed for the error of the binomial's values."""
        import numpy as np
        from scipy.special import ndtr
        from scipy.stats import binom

        value, half = np.array([r.value for r in radii]), np.array([r.half for r in radii])
        below, at, above = ndtr(np.stack([value - half, value, value + half]) / self.sigma)
        n, least = self.n, self.alpha * (1 - 1e-9)
        p = np.stack([below, at])
        k = np.clip(np.nan_to_num(binom.isf(self.alpha, n, p), nan=n) + 1, 1, n + 1)  # the first bound of p or more
        k = np.where((k > 1) & (_tail(np.maximum(k - 1, 1), n, p) <= self.alpha), k - 1, k)
        k = np.where(_tail(k, n, p) > self.alpha * (1 + 1e-9), k + 1, k)
        first, reaching = k
        too_large = first > n
        on = ~too_large & (_tail(first, n, above) >= least)
        less = on & (_tail(first, n, at) > self.alpha * (1 + 1e-9))  # a rung just below what is printed
        more = on & (reaching <= n) & (_tail(reaching, n, above) >= least)
        masks = (too_large, ~on & ~too_large, less & ~more, less & more)
        return Fit(*(tuple(radii[i] for i in np.flatnonzero(mask).tolist()) for mask in masks))


def _tail(k: Any, n: int, p: Any) -> Any:
    """Return P[Bin(n, p) >= k] for arrays of whole numbers k from 1 to n + 1."""
    import numpy as np
    from scipy.special import betainc

    return np.where(k > n, 0.0, betainc(np.minimum(k, n), n - np.minimum(k, n) + 1, p))


BEYOND = RadiusLadder(1.0, 1_000_000_000, 0.5)
"""Ladder of more draws than any log has: its top, 6.1 sigma, is above every honest radius."""


@dataclass(frozen=True)
class Fit:
    """The positions of printed radii on a ladder.

    Attributes:
        above: radii above its top.
        between: radii between two of its rungs.
        up: radii that were rounded up: their rung is below the printed value.
        unclear: radii that fit two rungs or more, some of them below the printed value.
    """

    above: tuple[Printed, ...]
    between: tuple[Printed, ...]
    up: tuple[Printed, ...]
    unclear: tuple[Printed, ...]

    @property
    def whole(self) -> bool:
        """Whether every radius lies on a rung."""
        return not self.above and not self.between


@dataclass(frozen=True)
class Inference:
    """The n and alpha that the radii of a log point to.

    Attributes:
        sigma: standard deviation of the noise.
        fitting: ladders on which all radii lie. With many draws the rungs are dense, and little is refuted.
        pile: the largest radius, if so many rows share it that it must be k = n, and some ladder has it as its top.
        explained: the ladders of `fitting` whose top is the pile. Without a pile, those with the fewest draws if it is
            unlikely that all radii lie on so few rungs by chance, and else all.
    """

    sigma: float
    fitting: tuple[RadiusLadder, ...]
    pile: Printed | None
    explained: tuple[RadiusLadder, ...]

    @property
    def alphas(self) -> tuple[float, ...]:
        """The levels that explain the radii."""
        return tuple(sorted({ladder.alpha for ladder in self.explained}))

    @property
    def verdict(self) -> str:
        """The explanation, in words."""
        if not self.explained:
            return "none of those tried"
        if len(self.explained) == 1:
            return str(self.explained[0])
        if len(self.explained) < 4:
            return f"undetermined: {'; '.join(map(str, self.explained))}"
        fewest = min(ladder.n for ladder in self.explained)
        return f"undetermined: n = {fewest} or more, alpha from {self.alphas[0]:g} to {self.alphas[-1]:g}"

    def levels(self, n: int) -> tuple[float, float] | None:
        """Return the smallest and largest alpha for which the pile is the top of n draws: alpha = p^n there."""
        if self.pile is None:
            return None
        from scipy.special import log_ndtr

        low, high = ((self.pile.value + sign * self.pile.half) / self.sigma for sign in (-1, 1))
        return math.exp(n * float(log_ndtr(low))), math.exp(n * float(log_ndtr(high)))


def infer(
    radii: Sequence[Printed], sigma: float, *, draws: Collection[int] = (), alphas: Collection[float] = ()
) -> Inference:
    """Infer n and alpha: try all usual ones, and the given ones.

    Args:
        radii: radii of one log, descending.
        sigma: standard deviation of the noise.
        draws: values of n to try beside the usual ones.
        alphas: values of alpha to try beside the usual ones.
    """
    from scipy.special import log_ndtr

    fitting = []
    top = float(log_ndtr((radii[0].value - radii[0].half) / sigma)) if radii else 0.0
    for n in sorted({*DRAWS, *draws}):
        for alpha in sorted({*ALPHAS, *alphas}, reverse=True):
            ladder = RadiusLadder(sigma, n, alpha)
            reached = radii and n * top <= math.log(alpha) + 1e-6  # else the largest radius is above the top
            if reached and ladder.fit(radii[:12]).whole and ladder.fit(radii).whole:
                fitting.append(ladder)
    rest = max((r.rows for r in radii[1:]), default=0)
    pile = radii[0] if radii and radii[0].rows >= PILE and radii[0].rows > rest else None
    explained = [ladder for ladder in fitting if pile and abs(ladder.rung(ladder.n) - pile.value) <= pile.half]
    if not explained:
        pile, explained = None, [ladder for ladder in fitting if ladder.n == fitting[0].n]
        tried = len({*DRAWS, *draws}) * len({*ALPHAS, *alphas})
        if tried * sum(ladder.luck(radii) for ladder in explained) > CHANCE:
            explained = fitting
    return Inference(sigma, tuple(fitting), pile, tuple(explained))


@dataclass(frozen=True)
class Sampling:
    """The n and alpha that a log claims; None if it claims none."""

    n: int | None = None
    alpha: float | None = None


def fewest(radius: Printed, sigma: float, alpha: float) -> int:
    """Return the fewest draws that can prove a radius at this level: all n agree, so that p^n = alpha."""
    from scipy.special import log_ndtr

    return math.ceil(math.log(alpha) / float(log_ndtr((radius.value - radius.half) / sigma)) * (1 - 1e-9))


def judge(radii: Sequence[Printed], inference: Inference, claim: Sampling) -> Iterator[Finding]:
    """Judge a claim of n and alpha by the radii.

    Args:
        radii: radii of one log, descending.
        inference: n and alpha that the radii point to.
        claim: n and alpha that are claimed.
    """
    sigma, largest = inference.sigma, radii[0]
    limit = sigma * BEYOND.rung(BEYOND.n)
    if largest.value - largest.half > limit:
        text = f"the radius {largest.value:g} is above {limit:.4g}, which no number of draws gives at sigma {sigma:g}"
        yield Finding("ladder", Severity.REFUTED, text, largest.lines)
        return
    if claim == Sampling():
        if not inference.explained:
            text = f"no usual n and alpha gives these radii at sigma {sigma:g}: another sigma, noise, norm or rule?"
            least = fewest(largest, sigma, USUAL)
            if least > 1:
                text += f" The largest, {largest.value:g}, takes {least} draws or more at alpha = {USUAL:g}"
            yield Finding("ladder", Severity.WARNING, text, largest.lines if least > DRAWS[-1] else ())
        return
    worse = claim.alpha is not None and bool(inference.alphas) and min(inference.alphas) > claim.alpha
    lines: tuple[int, ...] = ()
    if claim.n is not None and claim.alpha is not None:
        ladder = RadiusLadder(sigma, claim.n, claim.alpha)
        fit = ladder.fit(radii)
        if fit.whole and (inference.pile is None or ladder in inference.explained):
            return
        if fit.whole:
            text = f"{ladder} allows every radius, but the largest, {largest.rows} times the same, is not its top"
            yield Finding("ladder", Severity.WARNING, f"{text}; what explains it: {inference.verdict}", largest.lines)
            return
        parts = [f"{total(fit.above)} rows lie above its top, {ladder.rung(claim.n):.4g}"] if fit.above else []
        parts += [f"{total(fit.between)} rows lie between its rungs"] if fit.between else []
        lines = tuple(sorted(line for radius in fit.above or fit.between for line in radius.lines))
        worse = worse or bool(fit.above)
        levels = ", ".join(f"{other.alpha:g}" for other in inference.fitting if other.n == claim.n) or "none"
        what = f"{ladder} is refuted at sigma {sigma:g}: {' and '.join(parts)} (alpha that fits this n: {levels})"
    else:
        if any(claim.n in (None, ladder.n) and claim.alpha in (None, ladder.alpha) for ladder in inference.explained):
            return
        said = f"n = {claim.n}" if claim.n is not None else f"alpha = {claim.alpha:g}"
        what = f"{said} is refuted at sigma {sigma:g}"
    severity = Severity.REFUTED if worse else Severity.WARNING
    yield Finding("ladder", severity, f"{what}; what explains the radii: {inference.verdict}", lines)


def rounding(radii: Sequence[Printed], inference: Inference | None) -> Iterator[Finding]:
    """Count the radii that are printed larger than they were computed, or may be, if no single ladder explains them.

    Args:
        radii: radii of one log, descending.
        inference: n and alpha that the radii point to.
    """
    most = max(radius.half for radius in radii)
    if inference is not None and len(inference.explained) == 1:
        fit = inference.explained[0].fit(radii)
        if not fit.up and not fit.unclear:
            return
        text = (
            f"of {total(radii)} radii {total(fit.up)} are printed larger than what was proved, "
            f"{total(fit.unclear)} may be; by {most:.2g} at most"
        )
    else:
        text = f"each of {total(radii)} radii may be printed larger than what was proved, by {most:.2g} at most"
    if most > 1e-6:
        yield Finding("rounding", Severity.NOTE, text)
