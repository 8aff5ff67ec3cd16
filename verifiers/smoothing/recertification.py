"""Certificates from counts that somebody else made."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from numpy.typing import ArrayLike

from certbench.core.certificate import Certificate
from certbench.core.claims import ABSTAIN
from certbench.core.evidence import ExactCountsEvidence, RecertifiedEvidence
from certbench.core.inputs import cure_of_labels
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError
from certbench.verifiers.smoothing.confidence import binomial, top_k
from certbench.verifiers.smoothing.noise import gaussian_radius
from certbench.verifiers.smoothing.noise.families import Noise
from certbench.verifiers.smoothing.splitting import ranking
from certbench.verifiers.smoothing.votes import bounds, most_of_a_rival

LARGEST_SIGMA = 1e300
"""Largest standard deviation. Radii are at most some tens of it, and must be finite numbers."""

RULES = ("one-vs-rest", "two-class", "top-k")


SELECTED = ("reused", "independent", "label")


def recertify(
    counts: ArrayLike,
    *,
    sigma: float,
    alpha: float = 0.001,
    rule: str = "two-class",
    labels: ArrayLike | None = None,
    selection: ArrayLike | None = None,
    selected: str | ArrayLike | None = None,
    k: int = 1,
    norm: float | str = 2.0,
    d: int | None = None,
    draws: ArrayLike | None = None,
    noise: Noise | None = None,
) -> Certificate:
    r"""Certify a smoothed classifier from how often each class was drawn; wrong with probability <= alpha per input.

    The class certified at an input is, in this order: the one that `selection` counts most, the one that `selected`
    gives, or else the most frequent class of the same counts, "reused". A class that is chosen by the counts that then
    bound it costs confidence:

    - `one-vs-rest` then uses alpha / 2, however many classes there are. A class with p_c <= 1/2 is certified, wrongly,
      only if its count is at least m > n/2, where P[Bin(n, 1/2) >= m] <= alpha / 2. The tail P[Bin(n, p) >= m] is
      convex in p up to (m-1)/(n-1) >= 1/2 and 0 at 0, so it is at most 2p times that, and over these classes at most
      alpha times the sum of their p. If no class has p > 1/2, this is at most alpha. If one has, the sum is below 1/2,
      and with alpha / 2 for the bound of that class the total is at most alpha.
    - `two-class` spends a third of alpha each on the bound of the truly first class, on that of the truly second, and
      on the test that the most frequent class is the first (Hung and Fithian, 2019; as PREDICT of Cohen et al.). It
      abstains if the test does not reject.
    - `top-k` uses alpha / 2, see `confidence.top_k.simultaneous_bounds`.

    Args:
        counts: whole numbers, (n, classes).
        sigma: standard deviation of the noise, in units of the input.
        alpha: probability that an input's certificate is wrong.
        rule: `one-vs-rest` (Cohen et al., 2019), `two-class` (each bound at alpha / 2; see `GaussianSmoothing`), or
            `top-k` (Jia et al., 2020): the class stays among the k most probable.
        labels: true classes, for `selected="label"`.
        selection: counts of other draws, (n, classes), which select the class.
        selected: classes chosen without these counts; `"label"`: certify the true label, which no draw chose;
            `"independent"`: the most frequent class at the full alpha, as if other draws had chosen it. The literature
            reads such files in this way, but alpha covers it only if those draws chose the same class.
        k: the k of top-k.
        norm: 1, 2 or inf.
        d: dimension of the inputs; Linf and other noises than Gaussian need it.
        draws: number of draws per input, if some voted for no class (they count as one more rival, but not in the
            top k).
        noise: a noise of `certbench.verifiers.smoothing.noise`; its radii are used, in dimension d. None: Gaussian of
            `sigma`.

    Returns:
        The certificate. `evidence` has the counts, the bounds, and how the class was selected. For top-k `prediction`
        is the class that stays among the k, `ABSTAIN` where nothing is proved.

    Raises:
        ConfigError: counts or options that make no sense.
    """
    votes = _whole(counts, "counts", 2)
    n, classes = votes.shape
    p = ThreatModel.of(norm).p
    total = votes.sum(axis=1) if draws is None else _whole(draws, "draws", 1)
    if classes < 2 or total.shape != (n,) or bool((total < votes.sum(axis=1)).any()) or bool((total < 1).any()):
        raise ConfigError("counts need at least two classes, at least one draw, and at least as many draws as votes")
    _check_numbers(sigma, alpha, rule, k, p, d, noise)
    chosen, how = _selected(votes, labels, selection, selected)
    predictions, radii, evidence = [], [], []
    for row, top, trials in zip(votes.tolist(), chosen, total.tolist(), strict=True):
        claim = _claim(row, top, trials, alpha, rule, k, sigma, how == "reused")
        radius = claim.radius
        if noise is not None:
            radius = noise.radius(claim.p_lower, claim.p_upper, p, d or 0) if claim.tested else 0.0
        elif p == math.inf and math.isfinite(radius):
            radius *= math.nextafter(1 / math.sqrt(d or math.nan), 0)
        predictions.append(top if radius > 0 else ABSTAIN)
        radii.append(radius)
        evidence.append(
            RecertifiedEvidence(
                counts=tuple(row),
                n=trials,
                alpha=alpha,
                sigma=sigma,
                rule=rule,
                selected=how,
                top=top,
                p_lower=claim.p_lower,
                p_upper=claim.p_upper,
                k=k if rule == "top-k" else None,
            )
        )
    return Certificate.of(
        torch.tensor(predictions, dtype=torch.int64), torch.tensor(radii, dtype=torch.float64), evidence=evidence
    )


def recertify_exact(counts: ArrayLike, *, grid: int, draws: ArrayLike | None = None) -> Certificate:
    """Certify deterministic splitting in L1 from the votes of all shifts of its cuts (Levine and Feizi, 2021).

    One step of one coordinate changes at most one vote. So the radius is the number of votes that may change, each from
    the class to any other, before it wins no more, in steps of the grid. Ties go to the first class. It is about
    perturbed inputs on the grid alone.

    Args:
        counts: votes for each class, (n, classes): of every shift once, not of a sample.
        grid: steps of the data between 0 and 1; 255 for images of 8 bits.
        draws: number of shifts per input, if some voted for no class.

    Returns:
        The certificate: the class is known even where the radius is 0, unless there is no vote. Nothing is
        probabilistic.

    Raises:
        ConfigError: counts or a grid that make no sense.
    """
    votes = _whole(counts, "counts", 2)
    total = votes.sum(axis=1) if draws is None else _whole(draws, "draws", 1)
    if votes.shape[1] < 2 or total.shape != votes.shape[:1] or bool((total < votes.sum(axis=1)).any()):
        raise ConfigError("counts need at least two classes, and at least as many draws as votes")
    if isinstance(grid, bool) or not isinstance(grid, int) or grid < 1:
        raise ConfigError(f"grid must be a whole number of steps, at least 1, not {grid!r}", ("grid",))
    predictions, radii, evidence = [], [], []
    for row, trials in zip(votes.tolist(), total.tolist(), strict=True):
        top, changes = ranking(row, 1)
        predictions.append(top if sum(row) else ABSTAIN)
        radii.append(changes / grid if sum(row) else 0.0)
        claim = f"multiples of 1/{grid} only"
        evidence.append(ExactCountsEvidence(counts=tuple(row), n=trials, grid=grid, rule="exact", claim=claim))
    return Certificate.of(
        torch.tensor(predictions, dtype=torch.int64), torch.tensor(radii, dtype=torch.float64), evidence=evidence
    )


@dataclass(frozen=True)
class _Claim:
    """Bounds of the class and of its strongest rival, the L2 radius of Gaussian noise, and whether a test allows it."""

    p_lower: float
    p_upper: float
    radius: float
    tested: bool = True


def _claim(row: Sequence[int], top: int, n: int, alpha: float, rule: str, k: int, sigma: float, reused: bool) -> _Claim:
    if rule == "top-k":
        low, uppers = top_k.simultaneous_bounds(row, top, n, alpha / 2 if reused else alpha)
        return _Claim(low, max(uppers), top_k.topk_radius(low, uppers, k, sigma))
    if rule == "one-vs-rest":
        low, high = bounds(top, row, n, alpha / 2 if reused else alpha, "one-vs-rest")
        return _Claim(low, high, gaussian_radius.radius(low, high, sigma))
    share = alpha / 3 if reused else alpha / 2
    low, high = bounds(top, row, n, 2 * share)
    rival = most_of_a_rival(top, row, n)
    if reused and not (row[top] > rival and binomial.even_chance(row[top], rival) <= share):
        return _Claim(low, high, 0.0, tested=False)
    return _Claim(low, high, gaussian_radius.radius(low, high, sigma))


def _selected(
    votes: np.ndarray, labels: ArrayLike | None, selection: ArrayLike | None, selected: str | ArrayLike | None
) -> tuple[list[int], str]:
    n, classes = votes.shape
    if isinstance(selected, str) and selected not in SELECTED:
        raise ConfigError(f"selected must be one of {', '.join(SELECTED)}, or classes, not {selected!r}", ("selected",))
    if isinstance(selected, str) and selected != "label":
        return votes.argmax(axis=1).tolist(), selected
    if isinstance(selected, str):
        if labels is None:
            raise ConfigError("give labels to certify the true label", ("labels",))
        array = np.asarray(labels)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            form = f"labels are {array.dtype} of shape {array.shape}"
            raise ConfigError(f"{form}; give {cure_of_labels(array, n)}", ("labels",))
        given, how = _whole(array, "labels", 1), "label"
    elif selected is not None:
        given, how = _whole(selected, "selected", 1), "given"
    elif selection is not None:
        table = _whole(selection, "selection", 2)
        if table.shape != votes.shape:
            raise ConfigError(f"selection is of shape {table.shape}, counts of shape {votes.shape}", ("selection",))
        given, how = table.argmax(axis=1), "selection"
    else:
        return votes.argmax(axis=1).tolist(), "reused"
    if given.shape != (n,) or bool((given >= classes).any()):
        shifted = given.shape == (n,) and given.min() == 1 and given.max() == classes
        cure = "; they seem to start at 1, so give labels - 1" if shifted else ""
        raise ConfigError(f"{how}: one class below {classes} is needed for each of {n} inputs{cure}", ("selected",))
    return given.tolist(), how


def _check_numbers(
    sigma: float, alpha: float, rule: str, k: int, norm: float, d: int | None, noise: Noise | None
) -> None:
    if norm == 0:
        raise ConfigError("additive noise certifies no L0 radius; the norm is 1, 2 or inf", ("norm",))
    for name, value in (("sigma", sigma), ("alpha", alpha)):
        if isinstance(value, bool | str) or not isinstance(value, Real):
            raise ConfigError(f"{name} must be a number, not {value!r}", (name,))
    if not 0 < sigma <= LARGEST_SIGMA:
        raise ConfigError(f"sigma must be positive and at most {LARGEST_SIGMA:g}, not {sigma}", ("sigma",))
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha must lie between 0 and 1, not {alpha}", ("alpha",))
    if rule not in RULES:
        raise ConfigError(f"rule must be one of {', '.join(RULES)}, not {rule!r}", ("rule",))
    if k < 1 or (k > 1 and rule != "top-k"):
        raise ConfigError(f"k must be at least 1, and above 1 for top-k only; {rule} was given {k}", ("k",))
    if noise is not None and noise.sigma != sigma:
        raise ConfigError(f"sigma is {sigma}, but the noise has {noise.sigma}", ("sigma",))
    if rule == "top-k" and noise is not None:
        raise ConfigError("top-k certificates are for Gaussian noise", ("rule",))
    if (norm == math.inf or noise is not None) and (d is None or d < 1):
        raise ConfigError("Linf and noises other than Gaussian need the dimension d of the inputs", ("d",))


def _whole(values: ArrayLike, name: str, dimensions: int) -> np.ndarray:
    array = np.asarray(values)
    if array.size == 0 and array.ndim == dimensions:
        return array.astype(np.int64)
    if array.ndim != dimensions or array.dtype.kind not in "iu" or bool((array < 0).any()):
        raise ConfigError(f"{name} must be whole numbers >= 0 in {dimensions} dimensions", (name,))
    return array.astype(np.int64)
