"""Files of class counts, one row per input: text, NumPy archives, JSON, and the runs of certbench."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from certbench.core.evidence import RecountEvidence
from certbench.errors import ConfigError, StoreError
from certbench.files import arrays
from certbench.files.json_text import parse
from certbench.files.numbers import is_number
from certbench.results.folder import RunFolder

LABELS = ("auto", "none", "first", "last")

IGNORED = ("", "#", "idx", "index", "input", "id", "time", "seconds")
"""Names of columns that say nothing about counts."""

NAMED = {"label": "label", "labels": "label", "selected": "selected", "n": "draws", "draws": "draws"}
"""Names of columns with another meaning; every other column is the count of a class."""


@dataclass(frozen=True, eq=False)
class CountTable:
    """Counts of sampled classes at n inputs.

    Attributes:
        name: name in tables.
        counts: int64, (n, classes).
        labels: the true classes, if they are known.
        selection: counts of the draws that chose the classes, if they were kept.
        selected: the classes that were chosen on other draws, if only that is known.
        draws: number of draws per input, if some of them voted for no class; else the sums of the counts.
        sigma: standard deviation of the noise, if the file says so.
        noise: `name` of the noise's family and options of its shape, if the file says so.
        dimension: dimension of the inputs, if the file says so.
        alpha: alpha of the certificates in the file, if it has some.

    Raises:
        ConfigError: the labels are not one whole number per input.
    """

    name: str
    counts: np.ndarray
    labels: np.ndarray | None = None
    selection: np.ndarray | None = None
    selected: np.ndarray | None = None
    draws: np.ndarray | None = None
    sigma: float | None = None
    noise: Mapping[str, Any] | None = None
    dimension: int | None = None
    alpha: float | None = None

    def __post_init__(self) -> None:
        labels = self.labels
        if labels is not None and (labels.shape != self.counts.shape[:1] or labels.dtype.kind not in "iu"):
            raise ConfigError(
                f"{self.name}: labels must be one whole number for each of the {len(self.counts)} inputs; they are "
                f"{labels.dtype} of shape {labels.shape}"
            )


def read(path: Path, labels: str = "auto") -> list[CountTable]:
    """Read the tables of counts in a file: one, or one per model and certifier for the folder of a run.

    - Text (any other suffix): numbers separated by commas, tabs or blanks, one row per input. A header names columns:
      `label`, `selected` and `n` mean what they say, `idx` and the like are ignored, the others are counts in the
      order of the classes. Without a header, all are counts but for a first or last column of labels.
    - `.npz`: arrays `counts` and, if there are any, `labels`, `selection`, `selected`, `draws`.
    - `.json`, `.jsonl`: objects with `counts` and, if there are any, `label`, `selection`, `selected`, `n`, `sigma`,
      `noise`, `dimension`, `alpha`; in `evidence`, too.
    - The folder of a run, or its `results.db`: rows of the certifier `smoothing` with noise at the input.

    Args:
        path: path of the file.
        labels: column of the labels in text without a header: `none`, `first`, `last`; `auto` finds it by the rows'
            sums, which without the labels are all the same.

    Raises:
        ConfigError: the file is missing, is no such table, or is ambiguous.
    """
    if labels not in LABELS:
        raise ConfigError(f"labels must be one of {', '.join(LABELS)}, not {labels!r}", ("labels",))
    if path.is_dir() or path.suffix == ".db":
        return _run(path)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    try:
        if path.suffix == ".npz":
            return [_npz(path)]
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            return [_records(path.name, [parse(line) for line in text.splitlines() if line.strip()])]
        if path.suffix == ".json":
            return [_records(path.name, parse(text))]
        return [_text(path.name, text, labels)]
    except (ConfigError, StoreError):
        raise
    except (
        OSError,
        ValueError,
        ArithmeticError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        MemoryError,
    ) as error:
        raise ConfigError(f"cannot read counts from {path}: {type(error).__name__}: {error}") from error
    except csv.Error as error:
        raise ConfigError(f"cannot read counts from {path}: {error}") from error


def _text(name: str, text: str, labels: str) -> CountTable:
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ConfigError(f"{name} is empty")
    first = lines[0][1]
    mark = next((mark for mark in ",;\t" if mark in first), None)
    split = [(number, next(csv.reader([line], delimiter=mark)) if mark else line.split()) for number, line in lines]
    header = None
    if not all(_is_integer(cell) for cell in split[0][1]):
        header, split = [cell.strip().lower() for cell in split[0][1]], split[1:]
        if not split or any(is_number(cell) for cell in header):
            raise ConfigError(f"{name} has no counts below its first line, or numbers there that are no counts")
    width = len(header) if header is not None else len(split[0][1])
    skipped = {j for j, column in enumerate(header or ()) if column in IGNORED}
    rows = []
    for number, cells in split:
        if len(cells) != width:
            raise ConfigError(f"{name}, line {number}: {len(cells)} columns instead of {width}")
        bad = next((cell for j, cell in enumerate(cells) if j not in skipped and not _is_integer(cell)), None)
        if bad is not None:
            raise ConfigError(f"{name}, line {number}: {bad.strip()!r} is not a whole number")
        rows.append([0 if j in skipped else int(cell) for j, cell in enumerate(cells)])
    table = np.array(rows, dtype=np.int64).reshape(len(rows), width)
    if header is None:
        return _headless(name, table, labels)
    named = {NAMED[column]: table[:, j] for j, column in enumerate(header) if column in NAMED}
    votes = [j for j, column in enumerate(header) if column not in NAMED and j not in skipped]
    return CountTable(name, table[:, votes], named.get("label"), None, named.get("selected"), named.get("draws"))


def _headless(name: str, table: np.ndarray, labels: str) -> CountTable:
    parts = {"none": (table, None), "first": (table[:, 1:], table[:, 0]), "last": (table[:, :-1], table[:, -1])}
    if labels == "auto":
        fitting = [place for place, (counts, column) in parts.items() if _fits(counts, column)]
        if len(fitting) != 1:
            raise ConfigError(
                f"{name} does not tell whether a column holds labels; say which column: none, first or last",
                ("labels",),
            )
        labels = fitting[0]
    counts, column = parts[labels]
    return CountTable(name, counts, column)


def _fits(counts: np.ndarray, labels: np.ndarray | None) -> bool:
    """Say whether all rows have the same number of draws, and the labels name classes."""
    classes = counts.shape[1]
    return classes > 0 and len(set(counts.sum(axis=1))) == 1 and (labels is None or bool((labels < classes).all()))


def _npz(path: Path) -> CountTable:
    names = arrays.names_of(path)
    if "counts" not in names:
        raise ConfigError(f"{path.name} has no array `counts`, but {', '.join(names) or 'nothing'}")
    known = ("counts", "labels", "selection", "selected", "draws")
    found = arrays.read_npz(path, [name for name in known if name in names])
    labels, selection, selected, draws = (found.get(name) for name in known[1:])
    return CountTable(path.name, found["counts"], labels, selection, selected, draws)


def _records(name: str, records: Any) -> CountTable:
    if not (isinstance(records, list) and records and all(isinstance(record, Mapping) for record in records)):
        raise ConfigError(f"{name} must hold a list of objects, one per input")
    flat = [{**record, **record.get("evidence", {})} for record in records]
    if any("constants" in record or record.get("layer") is not None for record in flat):
        raise ConfigError(f"{name} holds counts of noise behind a hidden layer, which only their certifier can certify")
    return _columns(name, [{**record, **_noise(record)} for record in flat])


def _columns(name: str, records: Sequence[Mapping[str, Any]]) -> CountTable:
    def column(key: str) -> np.ndarray | None:
        return np.array([record[key] for record in records]) if all(key in record for record in records) else None

    def common(key: str) -> Any:
        values = {record[key] for record in records if key in record}
        if len(values) > 1:
            raise ConfigError(f"{name} mixes rows of different {key}: {', '.join(map(str, values))}")
        return values.pop() if values else None

    for key in ("table", "rule"):
        common(key)  # our own output may list an input once per rule
    counts = column("counts")
    if counts is None:
        raise ConfigError(f"{name}: an object has no `counts`")
    selected = column("selected")
    if selected is not None and selected.dtype.kind not in "iu":
        selected = None  # the word by which our own output says how the class was chosen
    labels = column("label")
    if labels is not None and labels.dtype.kind not in "iu":
        labels = None
    noise = common("noise")
    return CountTable(
        *(name, counts, labels, column("selection"), selected, column("n"), common("sigma")),
        *(noise and json.loads(noise), common("dimension"), common("alpha")),
    )


def _run(path: Path) -> list[CountTable]:
    run = RunFolder(path) if path.is_dir() else RunFolder(path.parent, path.name)
    with run.store() as store:
        rows = store.rows()
    groups: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in rows:
        if _around_the_input(row.spec, row.evidence):  # the same for every norm
            group = groups.setdefault((row.model, row.certifier), {})
            said = {"label": row.label, **_noise(row.spec), **_noise(row.evidence)}
            group[row.input] = said | RecountEvidence.part(row.evidence)
    if not groups:
        raise ConfigError(
            f"no row of {run.path / run.database} has counts of draws around the input and states its noise"
        )
    return [_columns(f"{model} {certifier}", [*inputs.values()]) for (model, certifier), inputs in groups.items()]


def _around_the_input(spec: Mapping[str, Any], evidence: Mapping[str, Any]) -> bool:
    """Say whether a row has counts under additive noise at the input; old rows name only sigma and their rule."""
    stated = "noise" in spec or {"sigma", "rule"} <= evidence.keys()
    return RecountEvidence.stated(evidence.keys()) and stated and spec.get("layer") is None


def _noise(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return family and shape, as text, and sigma, if a row or a certifier's options state them."""
    noise = said.get("noise")
    stated = dict(noise) if isinstance(noise, Mapping) else {"name": noise} if noise else {}
    sigma = stated.pop("sigma", said.get("sigma"))
    return ({"noise": json.dumps(stated, sort_keys=True)} if stated else {}) | ({"sigma": sigma} if sigma else {})


def _is_integer(cell: str) -> bool:
    try:
        int(cell)
    except ValueError:
        return False
    return True
