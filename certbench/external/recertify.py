"""Certificates from counts alone: another confidence, rule or norm, or a check of a log, without a forward pass."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from certbench.core import options, registry
from certbench.core.certificate import Certificate
from certbench.core.claims import ABSTAIN
from certbench.core.threat import ThreatModel
from certbench.errors import ConfigError
from certbench.external.count_files import CountTable, read
from certbench.files import safe_text
from certbench.verifiers.smoothing.noise.families import NOISES, Noise
from certbench.verifiers.smoothing.recertification import recertify, recertify_exact

EXACT = "exact"
"""Name of the rule for the votes of all shifts of deterministic splitting."""

DEFAULT_RADII = (0.25, 0.5, 0.75, 1.0)
"""Radii at which certified accuracy is shown."""


@dataclass(frozen=True)
class RecertifiedTable:
    """A table of counts and the certificates made from it.

    Attributes:
        counted: the table.
        certificates: by the name of the rule, one certificate for the n inputs; radii are in units of the input.
        norm: 1, 2 or inf.
        sigma: standard deviation of the noise, in units of the input.
        alpha: probability of error per input.
        noise: the noise; None if it is Gaussian.
        grid: steps of the data between 0 and 1, if the counts are those of all votes of deterministic splitting; then
            there is no sigma and no alpha, and both are 0.
    """

    counted: CountTable
    certificates: Mapping[str, Certificate]
    norm: float
    sigma: float
    alpha: float
    noise: Noise | None
    grid: int | None = None

    @property
    def noise_name(self) -> str:
        """Name of the noise's family."""
        if self.grid is not None:
            return "deterministic-splitting"
        return next((name for name, family in NOISES.items() if type(self.noise) is family), "gaussian")

    def right(self, certificate: Certificate) -> list[float]:
        """Return the radii of the inputs that are certified for their label; without labels, for any class."""
        counts_for = certificate.prediction != ABSTAIN
        if self.counted.labels is not None:
            counts_for &= certificate.prediction == torch.from_numpy(np.asarray(self.counted.labels, dtype=np.int64))
        found: list[float] = certificate.radius[counts_for].tolist()
        return found

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the certificate of each input, once for each rule."""
        shape = {"name": self.noise_name, **({} if self.noise is None else asdict(self.noise))}
        shape |= {} if self.grid is None else {"grid": self.grid}
        for certificate in self.certificates.values():
            labels = [None] * len(certificate) if self.counted.labels is None else self.counted.labels.tolist()
            columns = (labels, certificate.prediction.tolist(), certificate.radius.tolist(), certificate.evidence)
            for i, (label, prediction, radius, evidence) in enumerate(zip(*columns, strict=True)):
                yield (
                    {"table": self.counted.name, "input": i, "label": label, "prediction": prediction}
                    | {"radius": radius, "norm": self.norm}
                    | dict(evidence)
                    | {"noise": shape}
                )


def recertify_file(
    file: Path | str,
    *,
    sigma: float | None = None,
    alpha: float | None = None,
    rules: Sequence[str] = (),
    k: int = 1,
    norm: float | str = 2.0,
    d: int | None = None,
    noise: str | None = None,
    labels: str = "auto",
    selected: str | None = None,
    grid: int | None = None,
) -> list[RecertifiedTable]:
    """Certify from a file of counts of sampled classes alone, see `certbench.recertify`.

    Args:
        file: path of the counts, see `count_files.read`; or the folder of a run.
        sigma: standard deviation of the noise, in units of the input; None: the file's.
        alpha: probability of error per input; None: the file's, or 0.001.
        rules: some of `RULES`; if empty one-vs-rest and two-class, and top-k if k > 1. Or `exact` alone, for the
            votes of all shifts of deterministic splitting; see `recertify_exact`.
        k: the class stays among the k most probable, in the rule top-k.
        norm: 1, 2 or inf.
        d: dimension of the inputs; None: the file's.
        noise: family of the noise, one of `NOISES`; None: the file's, or gaussian.
        labels: column of the labels in text without a header: auto, none, first, last.
        selected: one of `SELECTED`; None: the file's selection, or else "reused".
        grid: steps of the data between 0 and 1; for the rule `exact`.

    Returns:
        One result for each table of counts in the file; for a run, one for each model and certifier.

    Raises:
        ConfigError: nothing can be certified.
        StoreError: a run cannot be read.
    """
    p, tables = ThreatModel.of(norm).p, []
    if EXACT in rules:
        given = {"sigma": sigma, "alpha": alpha, "noise": noise, "selected": selected}
        _check_exact(rules, p, grid, [name for name, value in given.items() if value is not None], k)
        assert grid is not None
        return [
            RecertifiedTable(
                *(one, {EXACT: recertify_exact(one.counts, grid=grid, draws=one.draws)}, p, 0.0, 0.0, None), grid=grid
            )
            for one in read(Path(file), labels)
        ]
    if grid is not None:
        raise ConfigError(f"grid belongs to the rule {EXACT}", ("grid",))
    for counted in read(Path(file), labels):
        std, level = counted.sigma if sigma is None else sigma, counted.alpha if alpha is None else alpha
        if std is None:
            raise ConfigError(f"{counted.name} does not state the noise; give --sigma", ("sigma",))
        level = 0.001 if level is None else level
        if not all(isinstance(value, int | float) for value in (std, level, counted.dimension or 1)):
            raise ConfigError(f"{counted.name}: sigma, alpha and dimension must be numbers, not text")
        family = _noise(noise, counted, std)
        certificates = {
            f"top-{k}" if rule == "top-k" else rule: recertify(
                counted.counts,
                sigma=std,
                alpha=level,
                rule=rule,
                labels=counted.labels,
                selection=counted.selection,
                selected=counted.selected if selected is None else selected,
                k=k if rule == "top-k" else 1,
                norm=p,
                d=d or counted.dimension,
                draws=counted.draws,
                noise=family,
            )
            for rule in rules or ("one-vs-rest", "two-class", *(("top-k",) if k > 1 else ()))
        }
        tables.append(RecertifiedTable(counted, certificates, p, std, level, family))
    return tables


def _check_exact(rules: Sequence[str], p: float, grid: int | None, given: Sequence[str], k: int) -> None:
    """Refuse options that make no sense for exact counts."""
    if len(rules) > 1 or k > 1:
        raise ConfigError(f"{EXACT} stands alone: other rules are for sampled counts", ("rule",))
    if p != 1:
        raise ConfigError(f"the rule {EXACT} gives radii in L1; write norm 1", ("norm",))
    if grid is None:
        problem = f"the rule {EXACT} needs grid, the steps of the data between 0 and 1, for example 255"
        raise ConfigError(problem, ("grid",))
    if given:
        raise ConfigError(f"the rule {EXACT} has no {', '.join(given)}: nothing is sampled", (given[0],))


def _noise(wanted: str | None, counted: CountTable, sigma: float) -> Noise | None:
    """Return the noise of a table, None if it is Gaussian."""
    stated = dict(counted.noise or {"name": "gaussian"})
    if wanted is not None and wanted != stated.get("name"):
        stated = {"name": wanted}
    if stated.get("name") not in [*NOISES]:
        raise ConfigError(registry.unknown("noise", str(stated.get("name")), NOISES), ("noise",))
    noise: Noise = options.choose(Noise, {**stated, "sigma": sigma}, ("noise",))
    return None if stated["name"] == "gaussian" else noise


def written_as(path: Path) -> Callable[[Sequence[RecertifiedTable]], str]:
    """Return the function that makes the text of a file of certificates, by the ending of its name.

    Raises:
        ConfigError: the name ends in neither .csv nor .json.
    """
    if path.suffix not in (".csv", ".json"):
        raise ConfigError(f"{path} must end in .csv or .json", ("out",))
    return _as_json if path.suffix == ".json" else _as_csv


def _as_json(tables: Sequence[RecertifiedTable]) -> str:
    """Write radii with all their digits, because rounding to nearest may round up."""
    records = (record for table in tables for record in table.records())
    plain = [{key: str(value) if value == math.inf else value for key, value in record.items()} for record in records]
    return json.dumps(plain, indent=1)


def _as_csv(tables: Sequence[RecertifiedTable]) -> str:
    """Write radii with all their digits, because rounding to nearest may round up."""
    records, file = [record for table in tables for record in table.records()], io.StringIO()
    columns = list(dict.fromkeys(key for record in records for key in record if key != "counts"))
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: json.dumps(value) if isinstance(value, dict) else safe_text.csv(value) for key, value in record.items()}
        for record in records
    )
    return file.getvalue()
