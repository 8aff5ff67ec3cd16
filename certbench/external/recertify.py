"""Certificates from counts alone: another confidence, rule or norm, or a check of a log, without a forward pass."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from rich.console import Console
from rich.table import Table

from certbench.core import options, registry
from certbench.core.certificate import Certificate
from certbench.core.claims import ABSTAIN
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError, StoreError
from certbench.external.count_files import CountTable, read
from certbench.verifiers.smoothing.confidence import binomial, top_k
from certbench.verifiers.smoothing.noise import gaussian_radius
from certbench.verifiers.smoothing.noise.families import NOISES, Noise

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
    norm: float = 2.0,
    d: int | None = None,
    draws: ArrayLike | None = None,
    noise: Noise | None = None,
) -> Certificate:
    r"""Certificates of a smoothed classifier from how often each class was drawn, each wrong with probability <= alpha.

    The class certified at an input is, in this order: what `selection` counts most, what `selected` says, and else the
    most frequent class of the same counts, "reused". A class chosen by the counts which then bound it costs confidence:

    - `one-vs-rest` then uses alpha / 2, however many classes there are. A class with p_c <= 1/2 is certified, wrongly,
      only if its count is at least m > n/2, where P[Bin(n, 1/2) >= m] <= alpha / 2. The tail P[Bin(n, p) >= m] is
      convex in p up to (m-1)/(n-1) >= 1/2 and 0 at 0, so it is at most 2p times that, and over these classes alpha
      times the sum of their p at most. If no class has p > 1/2, that is alpha at most; if one has, the sum is below
      1/2, and alpha / 2 for its own bound makes alpha at most.
    - `two-class` spends a third of alpha each on the bound of the truly first class, on that of the truly second, and
      on the test that the most frequent class is the first (Hung and Fithian, 2019; as PREDICT of Cohen et al.), and
      abstains if the test does not reject.
    - `top-k` uses alpha / 2, see `topk.simultaneous_bounds`.

    Args:
        counts: whole numbers, (n, classes).
        sigma: standard deviation of the noise, in units of the input.
        alpha: probability that an input's certificate is wrong.
        rule: `one-vs-rest` (Cohen et al., 2019), `two-class` (each bound at alpha / 2; see `GaussianSmoothing`), or
            `top-k` (Jia et al., 2020): the class stays among the k most probable.
        labels: true classes, for `selected="label"`.
        selection: counts of other draws, (n, classes), which select.
        selected: classes chosen without these counts; `"label"`: certify the true label, which no draw chose;
            `"independent"`: the most frequent class at the full alpha, as if other draws had chosen it. That is how the
            literature reads such files, and is covered by alpha only where those draws chose the same class.
        k: of top-k.
        norm: 1, 2 or inf.
        d: dimension of the inputs, which Linf and other noises than Gaussian need.
        draws: per input, where some voted for no class (they count as one more rival, but not in the top k).
        noise: one of `certbench.verifiers.smoothing.noise`; its radii are used, in dimension d. Gaussian of `sigma` if
            None.

    Returns:
        The certificate. `evidence` has the counts, the bounds, and how the class was selected. For top-k `prediction`
        is the class that stays among the k, `ABSTAIN` where nothing is proved.

    Raises:
        ConfigError: counts or options that make no sense.
    """
    votes = _whole(counts, "counts", 2)
    n, classes = votes.shape
    total = votes.sum(axis=1) if draws is None else _whole(draws, "draws", 1)
    if classes < 2 or total.shape != (n,) or bool((total < votes.sum(axis=1)).any()) or bool((total < 1).any()):
        raise ConfigError("counts need two classes or more, and as many draws as votes or more, at least one")
    _check_numbers(sigma, alpha, rule, k, norm, d, noise)
    chosen, how = _selected(votes, labels, selection, selected)
    predictions, radii, evidence = [], [], []
    for row, top, trials in zip(votes.tolist(), chosen, total.tolist(), strict=True):
        claim = _claim(row, top, trials, alpha, rule, k, sigma, how == "reused")
        radius = claim.radius
        if noise is not None:
            radius = noise.radius(claim.p_lower, claim.p_upper, norm, d or 0) if claim.tested else 0.0
        elif norm == math.inf and math.isfinite(radius):
            radius *= math.nextafter(1 / math.sqrt(d or math.nan), 0)
        predictions.append(top if radius > 0 else ABSTAIN)
        radii.append(radius)
        evidence.append(
            {"counts": row, "n": trials, "alpha": alpha, "sigma": sigma, "rule": rule, "selected": how, "class": top}
            | {"p_lower": claim.p_lower, "p_upper": claim.p_upper}
            | ({"k": k} if rule == "top-k" else {})
        )
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
    rivals = max([count for c, count in enumerate(row) if c != top] + [n - sum(row)])
    if rule == "top-k":
        low, uppers = top_k.simultaneous_bounds(row, top, n, alpha / 2 if reused else alpha)
        return _Claim(low, max(uppers), top_k.topk_radius(low, uppers, k, sigma))
    if rule == "one-vs-rest":
        low = binomial.lower(row[top], n, alpha / 2 if reused else alpha)
        return _Claim(low, 1 - low, gaussian_radius.radius(low, 1 - low, sigma))
    share = alpha / 3 if reused else alpha / 2
    low = binomial.lower(row[top], n, share)
    high = min(binomial.upper(rivals, n, share), 1 - low)
    if reused and not (row[top] > rivals and binomial.even_chance(row[top], rivals) <= share):
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
            raise ConfigError("to certify the true label, labels are needed", ("labels",))
        given, how = _whole(labels, "labels", 1), "label"
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
        raise ConfigError(f"{how}: one class below {classes} is needed for each of {n} inputs", ("selected",))
    return given.tolist(), how


def _check_numbers(
    sigma: float, alpha: float, rule: str, k: int, norm: float, d: int | None, noise: Noise | None
) -> None:
    if ThreatModel(norm).p == 0:
        raise ConfigError("additive noise certifies no L0 radius; the norm is 1, 2 or inf", ("norm",))
    if not 0 < sigma < math.inf:
        raise ConfigError(f"sigma must be positive and finite, not {sigma}", ("sigma",))
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


def run(
    path: Path,
    console: Console,
    *,
    sigma: float | None = None,
    alpha: float | None = None,
    rules: Sequence[str] = (),
    k: int = 1,
    norm: float = 2.0,
    d: int | None = None,
    noise: str | None = None,
    labels: str = "auto",
    selected: str | None = None,
    radii: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    out: Path | None = None,
) -> None:
    """The command `certbench recertify`: print a table and write what was certified at each input.

    Args:
        path: of the counts, see `count_files.read`.
        console: to print to.
        sigma: of the noise; what the file says, if None.
        alpha: probability of error per input; what the file says, or 0.001, if None.
        rules: of `RULES`; if empty one-vs-rest and two-class, and top-k if k > 1.
        k: of top-k.
        norm: 1, 2 or inf.
        d: dimension of the inputs; what the file says, if None.
        noise: family of the noise, one of `NOISES`; what the file says, or gaussian, if None.
        labels: where they are in text without a header: auto, none, first, last.
        selected: of `SELECTED`; if None the file's selection, or else "reused".
        radii: at which certified accuracy is shown.
        out: a `.csv` or `.json` file.

    Raises:
        ConfigError: nothing that can be certified.
        StoreError: `out` cannot be written.
    """
    if out is not None and out.suffix not in (".csv", ".json"):
        raise ConfigError(f"{out} must end in .csv or .json", ("out",))
    records: list[dict[str, Any]] = []
    for counted in read(path, labels):
        std, level = counted.sigma if sigma is None else sigma, counted.alpha if alpha is None else alpha
        if std is None:
            raise ConfigError(f"{counted.name} does not say what the noise was; give --sigma", ("sigma",))
        level = 0.001 if level is None else level
        if not all(isinstance(value, int | float) for value in (std, level, counted.dimension or 1)):
            raise ConfigError(f"{counted.name}: sigma, alpha and dimension must be numbers, not text")
        family = _noise(noise, counted, std)
        table = _heads(counted, radii)
        for rule in rules or ("one-vs-rest", "two-class", *(("top-k",) if k > 1 else ())):
            certificate = recertify(
                counted.counts,
                sigma=std,
                alpha=level,
                rule=rule,
                labels=counted.labels,
                selection=counted.selection,
                selected=counted.selected if selected is None else selected,
                k=k if rule == "top-k" else 1,
                norm=norm,
                d=d or counted.dimension,
                draws=counted.draws,
                noise=family,
            )
            table.add_row(f"top-{k}" if rule == "top-k" else rule, *_cells(counted, certificate, radii))
            records += _per_input(counted, certificate, norm, family)
        console.print(f"{counted.name}: L{norm:g}, {_name(family)} noise, sigma {std:g}, alpha {level:g}", markup=False)
        console.print(table)
        console.print(_note(certificate, level), markup=False, soft_wrap=True)
    if out is not None:
        _write(out, records)
        console.print(f"{len(records)} certificates: {out}", markup=False, soft_wrap=True)


def _noise(wanted: str | None, counted: CountTable, sigma: float) -> Noise | None:
    """The noise of a table, None if it is Gaussian."""
    stated = dict(counted.noise or {"name": "gaussian"})
    if wanted is not None and wanted != stated.get("name"):
        stated = {"name": wanted}
    if stated.get("name") not in [*NOISES]:
        raise ConfigError(registry.unknown("noise", str(stated.get("name")), NOISES), ("noise",))
    noise: Noise = options.choose(Noise, {**stated, "sigma": sigma}, ("noise",))
    return None if stated["name"] == "gaussian" else noise


def _name(noise: Noise | None) -> str:
    return next((name for name, family in NOISES.items() if type(noise) is family), "gaussian")


def _heads(counted: CountTable, radii: Sequence[float]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("rule")
    table.add_column("inputs", justify="right")
    table.add_column("abstained", justify="right")
    what = "certified" if counted.labels is None else "right"
    for head in (f"{what} %", *(f"@{eps:g}" for eps in radii), "mean radius" if counted.labels is None else "ACR"):
        table.add_column(head, justify="right")
    return table


def _cells(counted: CountTable, certificate: Certificate, radii: Sequence[float]) -> list[str]:
    """Shares of the inputs that are certified for their label (or, without labels, for any class), and their mean."""
    counts_for = certificate.prediction != ABSTAIN
    if counted.labels is not None:
        counts_for &= certificate.prediction == torch.from_numpy(np.asarray(counted.labels, dtype=np.int64))
    n = len(certificate)
    right = [radius for radius, good in zip(certificate.radius.tolist(), counts_for.tolist(), strict=True) if good]
    shares = [len(right), *(sum(radius >= eps for radius in right) for eps in radii)]
    abstained = int((certificate.prediction == ABSTAIN).sum())
    mean = math.fsum(right) / n if n else 0.0
    return [str(n), str(abstained), *(f"{100 * share / max(n, 1):.1f}" for share in shares), f"{mean:.4f}"]


def _note(certificate: Certificate, alpha: float) -> str:
    expected = f"Expected number of wrong certificates, per rule: {alpha * len(certificate):.3g} at most."
    how = certificate.evidence[0]["selected"] if len(certificate) else ""
    notes = {
        "reused": "The counts that bound the class also chose it, which costs confidence: one-vs-rest and top-k use "
        "alpha / 2, two-class alpha / 3 for each of three events.",
        "independent": "The most frequent class at the full alpha, as the literature has it: this holds only where "
        "draws of their own had chosen that class.",
        "label": "Certified is the true label.",
    }
    return f"{expected} {notes.get(how, 'The class was chosen by draws of its own.')}"


def _per_input(counted: CountTable, certificate: Certificate, norm: float, noise: Noise | None) -> list[dict[str, Any]]:
    shape = {"name": _name(noise), **({} if noise is None else asdict(noise))}
    labels = [None] * len(certificate) if counted.labels is None else counted.labels.tolist()
    return [
        {"table": counted.name, "input": i, "label": label, "prediction": prediction, "radius": radius, "norm": norm}
        | dict(evidence)
        | {"noise": shape}
        for i, (label, prediction, radius, evidence) in enumerate(
            zip(labels, certificate.prediction.tolist(), certificate.radius.tolist(), certificate.evidence, strict=True)
        )
    ]


def _write(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Radii with all their digits: what is rounded to nearest may be rounded up."""
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            if path.suffix == ".json":
                plain = [
                    {key: str(value) if value == math.inf else value for key, value in record.items()}
                    for record in records
                ]
                json.dump(plain, file, indent=1)
                return
            columns = list(dict.fromkeys(key for record in records for key in record if key != "counts"))
            writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(
                {key: json.dumps(value) if isinstance(value, dict) else value for key, value in record.items()}
                for record in records
            )
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}") from error
