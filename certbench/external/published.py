"""Cells of published tables, to compare with logs."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from certbench.errors import ConfigError
from certbench.external.ladder import Sampling
from certbench.external.smoothing_logs import Log


@dataclass(frozen=True)
class Cell:
    """A published accuracy.

    Attributes:
        radius: radius at which it is stated.
        percent: the accuracy in percent.
        half: half a unit of its last digit.
        log: end of the path of its log, if the table says.
        words: names of folders in the path of its log, if `log` is empty.
        sigma: noise in training and certification, if `log` is empty.
        claim: n and alpha that the table states.
    """

    radius: float
    percent: float
    half: float
    log: str
    words: tuple[str, ...]
    sigma: float | None
    claim: Sampling

    def is_of(self, log: Log) -> bool:
        """Say whether the cell is about this log."""
        parts = [_plain(part) for part in log.path.parts]
        if self.log:
            wanted = [_plain(part) for part in Path(self.log).parts]
            return parts[-len(wanted) :] == wanted
        apart = log.trained is not None and log.trained != log.sigma
        alike = self.sigma is not None and self.sigma == log.sigma and not apart and "train" not in parts
        return alike and all(word in parts for word in self.words)


def read_cells(path: Path) -> list[Cell]:
    """Read published accuracies from a CSV with a header.

    Columns are `radius` (or `eps`) and `accuracy` (or `verified_accuracy`), in percent, exact to its last digit. The
    log of a cell is named by `log`, the end of its path; or by `dataset` and `network`, whose words must be folders in
    the path, and `sigma=...` in `network`, the noise in training and certification. `n` and `alpha`, or `N=...
    alpha=...` in `method`, are the table's claim. Rows without `log` or sigma are about something else.

    Raises:
        ConfigError: this is no such table; the message names file and line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read published cells from {path}: {error}", ("published",)) from error
    cells = []
    for number, row in enumerate(rows, 2):
        at, value = row.get("radius") or row.get("eps"), row.get("accuracy") or row.get("verified_accuracy")
        network = row.get("network") or ""
        sigma = re.search(r"sigma\s*=\s*([\d.]+)", network)
        if not row.get("log") and sigma is None:
            continue
        method = row.get("method") or ""
        draws = row.get("n") or _after("N", method)
        alpha = row.get("alpha") or _after("alpha", method)
        try:
            cells.append(
                Cell(
                    *(float(at or ""), float(value or ""), 0.5 * 10.0 ** -len((value or "").partition(".")[2]) + 1e-9),
                    row.get("log") or "",
                    tuple(_plain(word) for word in [row.get("dataset") or "", *network.split()[:1]] if word),
                    float(sigma[1]) if sigma else None,
                    Sampling(int(draws) if draws else None, float(alpha) if alpha else None),
                )
            )
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: {error}", ("published",)) from error
    if not cells:
        raise ConfigError(f"{path} has no cell of a log: see the columns in the help", ("published",))
    return cells


def _after(word: str, text: str) -> str:
    found = re.search(rf"\b{word}\s*=\s*([\d.eE+-]+)", text)
    return found[1] if found else ""


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9._]", "", text.lower())
