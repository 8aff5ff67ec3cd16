"""Certificates from counts alone: another confidence, rule or norm, or a check of a log, without a forward pass."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from certbench.core import options, registry
from certbench.core.certificate import Certificate
from certbench.core.claims import ABSTAIN
from certbench.errors import ConfigError, StoreError
from certbench.external.count_files import CountTable, read
from certbench.verifiers.smoothing.noise.families import NOISES, Noise
from certbench.verifiers.smoothing.recertification import recertify


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
