"""Baselines, the rows of a run in a small text file to commit; and the readers of all that `certbench compare` takes.

A baseline is JSON with one line per row: index of the input, label, prediction, radius with as few digits as give the
same double, and for smoothing the counts. It also holds the fingerprints of models and data, the versions, the
distances of counterexamples, and the reason for every update.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from certbench.comparison.side import Known, Place, Scaled, Side, identities
from certbench.core import threat as threats
from certbench.core.claims import Guarantee, Outcome, Subject
from certbench.core.evidence import BracketEvidence, Evidence, TallyEvidence
from certbench.errors import ConfigError
from certbench.files.json_text import parse, plain
from certbench.results.folder import RunFolder, check_classes
from certbench.results.rows import Row
from certbench.results.significance import counted

FORMAT = 1
MARK = "certbench baseline"
BENCHMARK = "benchmark"
"""Certifier of rows from a file of pytest-benchmark, which knows neither certifier nor norm."""

UNKNOWN = -1.0
"""Norm of such rows."""

KEPT: dict[Guarantee, type[Evidence]] = {
    Guarantee.PROBABILISTIC: TallyEvidence,
    Guarantee.COMPLETE: BracketEvidence,
}
"""Evidence that a baseline keeps, because comparisons need it."""

HEAD = ("model", "certifier", "spec", "norm", "domain", "guarantee", "subject")
"""Fields that the rows of a group share."""


def read(path: Path) -> Side:
    """Read a run (by its folder), a baseline, or a JSON file of pytest-benchmark.

    Raises:
        ConfigError: this is none of these.
        StoreError: the run cannot be read.
    """
    if path.is_dir():
        return read_run(path)[0]
    values = _load(path)
    if isinstance(values, dict) and MARK in values:
        return _baseline(path, values)
    if isinstance(values, dict) and "benchmarks" in values and "machine_info" in values:
        return _benchmarks(path, values)
    raise ConfigError(f"{path} is neither the folder of a run, nor a baseline, nor a file of pytest-benchmark")


def read_run(folder: Path) -> tuple[Side, dict[str, Any]]:
    """Read a run, by its folder, and its manifest.

    Raises:
        ConfigError: this is not the folder of a run, or the run has a row twice.
        StoreError: the run cannot be read.
    """
    opened = RunFolder(folder)

    def content(manifest: Any) -> tuple[dict[str, Any], dict[str, str], str, dict[str, str]]:
        str(manifest["suite"]["name"])
        return manifest, dict(manifest["models"]), str(manifest["data"]["sha256"]), dict(manifest["versions"])

    manifest, models, data, versions = opened.manifest(content)
    with opened.store() as store:
        rows, uncomputed = store.rows(), store.missing()
    check_classes(manifest, rows)
    _once(folder, rows)
    return Side(str(folder), rows, models, data, uncomputed=uncomputed, versions=versions), manifest


def _load(path: Path) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; give the folder of a run, or a baseline") from error
    except ValueError as error:
        raise ConfigError(f"{path} is neither the folder of a run nor a baseline: {error}") from error


@dataclass(frozen=True)
class Baseline:
    """The content of a baseline.

    Attributes:
        side: its rows, models and data. Radii are in units of the input.
        history: each update with its `date`, `reason`, what `changed`, the version of `certbench` and the `commit`.
    """

    side: Side
    history: Sequence[Mapping[str, str]]


def read_baseline(file: Path | str) -> Baseline:
    """Read a baseline.

    Args:
        file: path of the baseline.

    Raises:
        ConfigError: the file is no baseline, or cannot be read.
    """
    path = Path(file)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, not a baseline; `certbench show {path}` shows a run")
    values = _load(path)
    if not isinstance(values, dict) or MARK not in values:
        raise ConfigError(f"{path} is no baseline; make one with `certbench baseline update RUN --reason TEXT`")
    return Baseline(_baseline(path, values), values["history"])


def _once(path: Path, rows: Sequence[Row]) -> None:
    """Refuse two rows of one identity, of which a comparison would see only one."""
    times = Counter(identities(rows))
    twice = next((row for row, key in zip(rows, identities(rows), strict=True) if times[key] > 1), None)
    if twice is not None:
        where = f"{twice.certifier} on {twice.model}, L{twice.norm:g}, input {twice.input}"
        raise ConfigError(f"{path} has a row twice: {where}")


def _baseline(path: Path, values: Mapping[str, Any]) -> Side:
    if values[MARK] != FORMAT:
        raise ConfigError(f"{path} was written by another version of certbench (format {values[MARK]})")
    try:
        content, history = _part(values, "content", dict), _part(values, "history", list)
        models, versions = _part(content, "models", dict), _part(content, "versions", dict)
        for words in (models, versions, *history):
            for word in ("date", "reason", "changed") if words not in (models, versions) else words:
                _part(words, word, str)
        rows = [row for group in _part(values, "groups", list) for row in _rows(group)]
        known = dict(map(_distance, _part(values, "distances", list)))
        side = Side(str(path), rows, models, _part(content, "data", str), known, versions=versions)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        said = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path} is not a complete baseline: {said}") from error
    _once(path, rows)
    return side


def _rows(group: Any) -> Iterator[Row]:
    head = {name: _part(group, name, kind) for name, kind in zip(HEAD[:3], (str, str, dict), strict=True)}
    domain, scale = _box(group["domain"])
    head |= {"norm": _number(group["norm"]), "domain": domain, "scale": scale}
    head |= {"guarantee": Guarantee(group["guarantee"]), "subject": Subject(group["subject"])}
    for i, line in enumerate(_part(group, "rows", list), start=1):
        try:
            yield _row(head, line)
        except (LookupError, TypeError, ValueError) as error:
            where = f"row {i} of {head['certifier']} on {head['model']}, L{head['norm']:g}"
            raise ValueError(f"{where}: {error}: {json.dumps(line)[:200]}") from error


def _row(head: Mapping[str, Any], line: Any) -> Row:
    if not isinstance(line, list) or len(line) not in (4, 5) or any(type(number) is not int for number in line[:3]):
        raise ValueError("it is not [input, label, prediction, radius], with or without an object after them")
    index, label, prediction, radius, *rest = line
    more = dict(rest[0]) if rest else {}
    outcome = Outcome(more.pop("outcome", Outcome.COMPLETED.value))
    row = Row(
        input=index, label=label, prediction=prediction, radius=_number(radius), outcome=outcome, evidence=more, **head
    )
    if row.guarantee is Guarantee.PROBABILISTIC and TallyEvidence.stated(more.keys()) and counted(row) is None:
        raise ValueError("its counts are not those of n draws")
    return row


def _distance(values: Any) -> tuple[Place, Known]:
    model, norm, domain, index, distance, source = values
    if not isinstance(model, str) or type(index) is not int or not isinstance(source, str):
        raise ValueError(
            f"a distance is not [model, norm, domain, input, distance, source]: {json.dumps(values)[:200]}"
        )
    box, scale = _box(domain)
    there = box if scale is None else Scaled(box, scale)
    return (model, _number(norm), there, index), Known(_number(distance), source)


def _part(values: Any, name: str, kind: type) -> Any:
    """Return a part of the file, which must be there and of this type."""
    found = values.get(name) if isinstance(values, Mapping) else None
    if not isinstance(found, kind):
        words: dict[type, str] = {dict: "object", list: "list", str: "text"}
        raise ValueError(f"{name!r} is missing" if found is None else f"{name!r} is no {words[kind]}")
    return found


def _number(value: Any) -> float:
    """Return a number that is at least 0; infinity is text, as `plain` writes it."""
    if value == "inf":
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r} is no number that is at least 0")
    return float(value)


def _box(domain: Any) -> tuple[threats.Domain | None, threats.Numbers | None]:
    """Read a domain, and the scales where there are some."""
    try:
        return threats.read(domain)
    except ConfigError as error:
        raise ValueError(str(error)) from error


def text_of(side: Side, known: Mapping[Place, Known], history: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the file of a baseline, in pieces; a change of one row changes one line."""
    content = {"models": side.models, "data": side.data, "versions": side.versions}
    yield f'{{\n"{MARK}": {FORMAT},\n"history": [\n{_list(history)}\n],\n"content": {_json(content)},\n'
    distances = ([*map(plain, _values(place)), one.distance, one.source] for place, one in known.items())
    yield f'"distances": [\n{_list(distances)}\n'
    yield '],\n"groups": [\n'
    groups = groupby(side.rows, _head)
    for i, (head, rows) in enumerate(groups):
        yield (",\n" if i else "") + _json(head)[:-1] + f', "rows": [\n{_list(map(_line, rows))}\n]}}'
    yield "\n]\n}\n"


def _head(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in HEAD} | {"domain": threats.written(row.domain, row.scale)}


def _values(place: Place) -> tuple[Any, ...]:
    model, norm, box, index = place
    return model, norm, threats.written(box.domain, box.scale) if isinstance(box, Scaled) else box, index


def _line(row: Row) -> list[Any]:
    more: dict[str, Any] = {} if row.outcome is Outcome.COMPLETED else {"outcome": row.outcome.value}
    if row.guarantee in KEPT:
        more |= KEPT[row.guarantee].part(row.evidence)
    return [row.input, row.label, row.prediction, row.radius, *([more] if more else [])]


def _list(values: Iterable[Any]) -> str:
    return ",\n".join(map(_json, values))


def _json(value: Any) -> str:
    return json.dumps(plain(value), allow_nan=False)


def _benchmarks(path: Path, values: Mapping[str, Any]) -> Side:
    """Read the radii that `certbench.pytest_plugin` left in each benchmark's `extra_info`, and its median time."""
    rows: list[Row] = []
    known: dict[Place, Known] = {}
    models: dict[str, str] = {}
    medians: dict[str, float] = {}
    try:
        for benchmark in values["benchmarks"]:
            name = benchmark["fullname"]
            medians[name] = float(benchmark["stats"]["median"])
            held = benchmark.get("extra_info", {}).get("certbench")
            if held is None:
                continue
            models[name] = held["content"]
            head = {"model": name, "certifier": BENCHMARK, "spec": {"name": BENCHMARK}, "norm": UNKNOWN}
            head |= {"guarantee": Guarantee.SOUND, "subject": Subject.BASE, "outcome": Outcome.COMPLETED}
            for i, radius in enumerate(_part(held, "radii", list)):
                rows.append(Row(input=i, label=0, prediction=0, radius=float(radius), **head))
            for i, upper in enumerate(_part(held, "upper", list)):
                known[name, UNKNOWN, None, i] = Known(_number(upper), "counterexample")
        node = values["machine_info"]["node"]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is no file of pytest-benchmark: {type(error).__name__}: {error}") from error
    _once(path, rows)
    return Side(str(path), rows, models, "pytest-benchmark", known, medians=medians, machine=node)
