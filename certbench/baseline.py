"""Baselines: what a run found, as a small text file to commit; and all that `certbench compare` reads.

A baseline is JSON with one line per row: index of the input, label, prediction, radius with as few digits as give the
same double, and for smoothing the counts. Beside them stand the fingerprints of models and data, the versions, the
distances of counterexamples, and the reason for every update.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console

from certbench.comparison import Kind, Known, Place, Side, classify, compare, distances, merge
from certbench.errors import ConfigError, StoreError
from certbench.policy import Policy
from certbench.rows import Row
from certbench.store import Store, plain
from certbench.terms import Guarantee, Outcome, Subject

FORMAT = 1
MARK = "certbench baseline"
BENCHMARK = "benchmark"
"""The certifier of rows that come from a file of pytest-benchmark, which knows neither certifier nor norm."""

KEPT = {Guarantee.PROBABILISTIC: ("counts", "n", "rule", "seed"), Guarantee.COMPLETE: ("bracket",)}
"""Evidence that comparisons need."""

HEAD = ("model", "certifier", "spec", "norm", "domain", "guarantee", "subject")
"""What the rows of a group share."""


def read(path: Path) -> Side:
    """A run, by its folder; a baseline; or a JSON file of pytest-benchmark.

    Raises:
        ConfigError: it is none of these.
        StoreError: it cannot be read.
    """
    if path.is_dir():
        return _run(path)[0]
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; give the folder of a run, or a baseline") from error
    except ValueError as error:
        raise ConfigError(f"{path} is neither the folder of a run nor a baseline: {error}") from error
    if isinstance(values, dict) and MARK in values:
        return _baseline(path, values)
    if isinstance(values, dict) and "benchmarks" in values and "machine_info" in values:
        return _benchmarks(path, values)
    raise ConfigError(f"{path} is neither the folder of a run, nor a baseline, nor a file of pytest-benchmark")


def update(run: Path, reason: str, console: Console, path: Path | None = None) -> int:
    """The command `certbench baseline update`: make a run the baseline; refused for one that is wrong or incomplete.

    Args:
        run: its folder.
        reason: why, for the file's history.
        console: to print to.
        path: of the baseline; `reports/NAME/baseline.json` if None.

    Returns:
        The exit code: 0; 3 if a radius is refuted or no number, 5 if rows of the run are missing.

    Raises:
        ConfigError: this is no run, or no reason is given.
        StoreError: a file cannot be read or written.
    """
    if not reason.strip():
        raise ConfigError("say why the baseline changes: --reason TEXT", ("reason",))
    side, manifest = _run(run)
    path = path or Path("reports") / str(manifest["suite"]["name"]) / "baseline.json"
    known, history, said = distances(side.rows), [], f"{len(side.rows)} rows, new"
    if path.exists():
        before = read(path)
        history = _load(path)["history"]
        changes = compare(before, side, Policy()).changes
        counts = Counter(change.kind for change in changes)
        said = ", ".join(f"{counts[kind]} {kind.value}" for kind in Kind if counts[kind])
        fits = {name: not before.mismatch(side, name) for name in side.models}
        known = merge(known, {place: one for place, one in before.known.items() if fits.get(place[0])})
    wrong = [row for row in side.rows if _wrong(row, known)]
    if wrong or side.uncomputed:
        for row in wrong[:10]:
            where = f"{row.certifier} on {row.model}, L{row.norm:g}, input {row.input}"
            console.print(f"unsound or no number: {where}: radius {row.radius:.6g}", markup=False, soft_wrap=True)
        console.print(f"The baseline stays: {len(wrong)} rows are wrong, {side.uncomputed} have not been computed.")
        return 3 if wrong else 5
    entry = {"date": datetime.now(UTC).date().isoformat(), "reason": reason.strip(), "changed": said}
    entry |= {"certbench": side.versions.get("certbench", ""), "commit": str(manifest.get("commit", ""))}
    _write(path, "".join(_lines(side, known, [*history, entry])))
    console.print(f"{path}: {said}", markup=False, soft_wrap=True)
    return 0


def show(path: Path, console: Console) -> int:
    """The command `certbench baseline show`: what a baseline holds, and why it changed.

    Raises:
        ConfigError: this is no baseline.
    """
    side, values = read(path), _load(path)
    console.print(f"{path}: {len(side.rows)} rows of {len(side.models)} models", markup=False, soft_wrap=True)
    versions = ", ".join(f"{name} {version}" for name, version in side.versions.items())
    console.print(f"made with {versions}", markup=False, soft_wrap=True)
    for group in values["groups"]:
        radii = [row[3] for row in group["rows"] if row[3] != "inf"]
        mean = math.fsum(radii) / max(len(radii), 1)
        place = f"{group['certifier']} on {group['model']}, L{float(group['norm']):g}"
        console.print(f"  {place}: {len(group['rows'])} inputs, mean radius {mean:.6g}", markup=False, soft_wrap=True)
    for entry in values["history"]:
        console.print(f"{entry['date']}  {entry['reason']}  ({entry['changed']})", markup=False, soft_wrap=True)
    return 0


def _wrong(row: Row, known: Mapping[Place, Known]) -> bool:
    here = known.get((row.model, row.norm, row.domain, row.input)) if row.subject is Subject.BASE else None
    upper = math.inf if here is None else here.distance
    return classify(row.radius, row.radius, upper=upper) in (Kind.NON_FINITE, Kind.UNSOUND)


def _run(folder: Path) -> tuple[Side, dict[str, Any]]:
    if not (folder / "results.db").exists():
        raise ConfigError(f"{folder} is not the folder of a run: there is no results.db in it")
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        models, data, versions = dict(manifest["models"]), str(manifest["data"]["sha256"]), dict(manifest["versions"])
        str(manifest["suite"]["name"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StoreError(f"cannot read {folder / 'manifest.json'}: {type(error).__name__}: {error}") from error
    store = Store(folder / "results.db")
    try:
        rows, uncomputed = store.rows(), store.missing()
    finally:
        store.close()
    return Side(str(folder), rows, models, data, uncomputed=uncomputed, versions=versions), manifest


def _load(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if MARK not in values:
        raise ConfigError(f"{path} is no baseline; make one with `certbench baseline update RUN --reason TEXT`")
    return values


def _baseline(path: Path, values: Mapping[str, Any]) -> Side:
    if values[MARK] != FORMAT:
        raise ConfigError(f"{path} was written by another version of certbench (format {values[MARK]})")
    try:
        rows = [_row(group, line) for group in values["groups"] for line in group["rows"]]
        known = {
            (model, float(norm), None if domain is None else (domain[0], domain[1]), index): Known(distance, source)
            for model, norm, domain, index, distance, source in values["distances"]
        }
        content = values["content"]
        return Side(str(path), rows, content["models"], content["data"], known, versions=content["versions"])
    except (LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is not a whole baseline: {type(error).__name__}: {error}") from error


def _row(group: Mapping[str, Any], line: list[Any]) -> Row:
    index, label, prediction, radius, *rest = line
    more = dict(rest[0]) if rest else {}
    domain = group["domain"]
    return Row(
        model=group["model"],
        certifier=group["certifier"],
        spec=group["spec"],
        guarantee=Guarantee(group["guarantee"]),
        subject=Subject(group["subject"]),
        norm=float(group["norm"]),
        domain=None if domain is None else (domain[0], domain[1]),
        input=index,
        label=label,
        prediction=prediction,
        radius=float(radius),
        outcome=Outcome(more.pop("outcome", Outcome.COMPLETED.value)),
        evidence=more,
    )


def _lines(side: Side, known: Mapping[Place, Known], history: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The file, in pieces: whoever changes one row changes one line."""
    content = {"models": side.models, "data": side.data, "versions": side.versions}
    yield f'{{\n"{MARK}": {FORMAT},\n"history": [\n{_list(history)}\n],\n"content": {_json(content)},\n'
    yield f'"distances": [\n{_list([*map(plain, place), one.distance, one.source] for place, one in known.items())}\n'
    yield '],\n"groups": [\n'
    groups = groupby(side.rows, lambda row: {name: getattr(row, name) for name in HEAD})
    for i, (head, rows) in enumerate(groups):
        yield (",\n" if i else "") + _json(head)[:-1] + f', "rows": [\n{_list(map(_line, rows))}\n]}}'
    yield "\n]\n}\n"


def _line(row: Row) -> list[Any]:
    more: dict[str, Any] = {} if row.outcome is Outcome.COMPLETED else {"outcome": row.outcome.value}
    more |= {name: row.evidence[name] for name in KEPT.get(row.guarantee, ()) if name in row.evidence}
    return [row.input, row.label, row.prediction, row.radius, *([more] if more else [])]


def _list(values: Iterable[Any]) -> str:
    return ",\n".join(map(_json, values))


def _json(value: Any) -> str:
    return json.dumps(plain(value), allow_nan=False)


def _write(path: Path, text: str) -> None:
    """In one step, so that no reader meets half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(path.suffix + ".part")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}") from error


def _benchmarks(path: Path, values: Mapping[str, Any]) -> Side:
    """Radii that `certbench.pytest_plugin` left in a benchmark's `extra_info`, and its median time."""
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
            head = {"model": name, "certifier": BENCHMARK, "spec": {"name": BENCHMARK}, "norm": 0.0, "domain": None}
            head |= {"guarantee": Guarantee.SOUND.value, "subject": Subject.BASE.value}
            for i, radius in enumerate(held["radii"]):
                rows.append(_row(head, [i, 0, 0, radius]))
            for i, upper in enumerate(held["upper"]):
                known[name, 0.0, None, i] = Known(float(upper), "counterexample")
        node = values["machine_info"]["node"]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is no file of pytest-benchmark: {type(error).__name__}: {error}") from error
    return Side(str(path), rows, models, "pytest-benchmark", known, medians=medians, machine=node)
