"""Instances of the competition of verifiers (VNN-COMP): they are answered, in the format that it wants."""

import copy
import csv
import hashlib
import io
import time
from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import torch

from certbench.core.properties import Property
from certbench.core.registry import unknown
from certbench.errors import CertbenchError, ConfigError, StoreError
from certbench.files import safe_text
from certbench.files.reading import plain
from certbench.files.writing import write
from certbench.formats.onnx.loading import load
from certbench.formats.onnx.module import OnnxModule
from certbench.formats.onnx.replay import Replay
from certbench.formats.vnnlib import reading, witnesses
from certbench.formats.vnnlib.reading import Instance
from certbench.verifiers.complete.properties import Decision, Program, check_sizes, decide

RERUN = {
    "errors": ("error",),
    "open": ("error", "timeout", "unknown"),
    "all": ("error", "timeout", "unknown", "sat", "unsat"),
    "none": (),
}
"""Stored answers that are computed again, by the name of the choice, see also `_is_open`."""

ANSWERS = ("sat", "unsat")


@dataclass(frozen=True)
class Row:
    """The answer to an instance.

    Attributes:
        onnx: the network, as the list of instances has it.
        vnnlib: the property, likewise.
        prepare: seconds to read the files.
        result: `unsat`, `sat`, `unknown`, `timeout` or `error`.
        seconds: seconds to answer.
        limit: time limit in seconds.
        method: name of the method that decided.
        reason: reason for `unknown` and `error`, or what a reader should know.
        digest: sha256 of both files, by which a stored answer is known to be of the same instance.
    """

    onnx: str
    vnnlib: str
    prepare: float
    result: str
    seconds: float
    limit: float
    method: str = ""
    reason: str = ""
    digest: str = ""


class Problem:
    """One network, read once: the module, and the file itself as the program."""

    def __init__(self, path: Path) -> None:
        """Read it.

        Raises:
            ConfigError: it cannot be read.
            MissingBackendError: onnx or onnxruntime is not installed.
        """
        self.module: OnnxModule = load(path)
        replay = Replay(path, self.module.input_shape)
        self.program = Program(replay, replay.dtype)

    @cached_property
    def exact(self) -> torch.nn.Module:
        """The module in float64."""
        return copy.deepcopy(self.module).double()

    def check(self, wanted: Property) -> None:
        """Compare the numbers of inputs and outputs with those of a property.

        Raises:
            ConfigError: they differ.
        """
        check_sizes(self.module.input_shape, wanted, self.program)

    def decide(self, wanted: Property, seconds: float) -> Decision:
        """Decide a property within a time limit."""
        return decide(self.module, self.module.input_shape, wanted, self.program, seconds)


def digest(instance: Instance) -> str:
    """Return the sha256 of the network and the property; empty if one is missing."""
    found = hashlib.sha256()
    for path in (instance.network, instance.property):
        if not path.is_file():
            return ""
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def answer(
    root: Path | str, folder: Path, *, scale: float = 1.0, only: str = "", rerun: str = "errors"
) -> Iterator[Row]:
    """Answer the instances of a benchmark; what is stored in the folder already is not computed again.

    A stored timeout or `unknown` is computed again if there is more time now, unless `rerun` is `none`. An answer that
    was found is kept when there is less time.

    After each instance `results.csv` (category, onnx, vnnlib, seconds to prepare, result, seconds to run) and
    `details.csv` are written. A counterexample is written beside them before its answer, see `witnesses.names_of`, and
    goes with it. An instance that stands twice in the list is answered once. Stored answers to other instances stay in
    `details.csv` alone; `remarks` names them.

    Args:
        root: folder with `instances.csv`.
        folder: folder of the results.
        scale: factor of the time limits.
        only: text that the line of an instance must contain.
        rerun: a key of `RERUN`.

    Yields:
        The rows, in the order of the instances.

    Raises:
        ConfigError: there are no instances, or an option is out of its range.
        StoreError: the results cannot be read or written.
    """
    if not 0 < scale < float("inf"):
        raise ConfigError(f"scale must be positive and finite, not {scale}", ("scale",))
    if rerun not in RERUN:
        raise ConfigError(unknown("choice of rerun", rerun, RERUN), ("rerun",))
    listed = _listed(root)
    chosen = [one for one in listed.values() if only in f"{one.onnx},{one.vnnlib}"]
    if not chosen:
        raise ConfigError(f"no instance has {only!r} in its names", ("only",))
    category = Path(root).resolve().name
    rows = stored(folder)
    names = witnesses.names_of(listed)
    _tidy(folder, rows, names)
    last: tuple[Path, Problem] | None = None
    for one in chosen:
        key, name, limit = one.key, digest(one), one.limit * scale
        old = rows.get(key)
        if old is None or old.digest != name or _is_open(old, limit, rerun, folder / names[key]):
            start = time.perf_counter()
            found = Row(one.onnx, one.vnnlib, 0.0, "error", 0.0, limit, digest=name)
            try:
                if last is None or last[0] != one.network:
                    last = None
                    last = one.network, Problem(one.network)
                wanted = reading.load(one.property)
                prepared = time.perf_counter() - start
                found = replace(found, prepare=prepared)
                found = _answered(last[1], wanted, found, folder / names[key])
            except StoreError:
                raise
            except CertbenchError as error:
                found = replace(found, reason=str(error))
            except Exception as error:  # whatever one instance raises, the others go on
                found = replace(found, reason=f"{type(error).__name__}: {error}")
            kept = old is not None and old.digest == name and old.result in ANSWERS and limit < old.limit
            if not kept or found.result in ANSWERS:
                rows[key] = found
            _store(folder, category, rows, listed)
            _tidy(folder, {key: rows[key]}, names, rows)
        yield rows[key]


def remarks(root: Path | str, folder: Path) -> list[str]:
    """Name what a user should know of a list of instances and of stored answers before they are answered.

    Raises:
        ConfigError: there are no instances.
        StoreError: the results cannot be read.
    """
    every, listed, rows = reading.instances(root), _listed(root), stored(folder)
    again = [str(one.line) for one in every if listed[one.key].line != one.line]
    others = [row for key, row in rows.items() if key not in listed]
    twice = len(_rows(folder)) - len(rows)
    found = [f"{folder / 'details.csv'} has {twice} rows of instances that it has below, too"] if twice else []
    if again:
        found.append(f"instances.csv repeats an instance in lines {', '.join(again)}; each is answered once")
    if others:
        first = f"{others[0].onnx} {others[0].vnnlib}"
        found.append(
            f"{folder} has {len(others)} answers to instances that are not in instances.csv, such as {first}; they "
            "are left out of results.csv"
        )
    return found


def _listed(root: Path | str) -> dict[tuple[str, str], Instance]:
    """Return the instances by their paths; of those that stand there twice, the one with the longest time limit."""
    found: dict[tuple[str, str], Instance] = {}
    for one in reading.instances(root):
        if one.key not in found or one.limit > found[one.key].limit:
            found[one.key] = one
    return found


def _is_open(old: Row, limit: float, rerun: str, witness: Path) -> bool:
    """Say whether a stored answer to the same instance is computed again."""
    if rerun == "none":
        return False
    longer = old.result in ("timeout", "unknown") and limit > old.limit
    return longer or old.result in RERUN[rerun] or (old.result == "sat" and not witness.is_file())


def _tidy(
    folder: Path,
    rows: Mapping[tuple[str, str], Row],
    names: Mapping[tuple[str, str], str],
    every: Mapping[tuple[str, str], Row] | None = None,
) -> None:
    """Delete counterexamples of instances whose answer is not `sat`, or not any more."""
    every = rows if every is None else every
    kept = {names.get(key, witnesses.name_of(*key)) for key, row in every.items() if row.result == "sat"}
    for key in rows:
        for name in {witnesses.name_of(*key), witnesses.whole_name_of(*key)} - kept:
            try:
                (folder / name).unlink(missing_ok=True)
            except OSError as error:
                raise StoreError(f"{folder / name} cannot be deleted: {error}; delete it") from error


def _answered(problem: Problem, wanted: Property, row: Row, path: Path) -> Row:
    start = time.perf_counter()
    decision = problem.decide(wanted, row.limit)
    seconds = time.perf_counter() - start
    row = replace(row, seconds=seconds, result=decision.verdict, method=decision.method, reason=decision.reason)
    if decision.verdict in ANSWERS and seconds > row.limit:
        return replace(row, result="timeout", reason=f"{decision.verdict}, but after the time limit")
    if decision.witness is not None and decision.outputs is not None:
        content = witnesses.text(decision.witness.tolist(), decision.outputs.tolist())
        write(path, content, create_folder=True)
    return row


def stored(folder: Path) -> dict[tuple[str, str], Row]:
    """Read the stored rows of a folder, by the paths of network and property, see `plain`; of two, the later one.

    Raises:
        StoreError: they cannot be read.
    """
    return {(plain(row.onnx), plain(row.vnnlib)): row for row in _rows(folder)}


def _rows(folder: Path) -> list[Row]:
    path = folder / "details.csv"
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [_row(cells) for cells in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise StoreError(f"{path} cannot be read: {error}; give another folder, or delete it") from error


def _row(cells: dict[str, str]) -> Row:
    prepare, seconds, limit = (float(cells[name]) for name in ("prepare", "seconds", "limit"))
    onnx, vnnlib, result = (cells[name] for name in ("onnx", "vnnlib", "result"))
    return Row(onnx, vnnlib, prepare, result, seconds, limit, cells["method"], cells["reason"], cells["digest"])


def _store(
    folder: Path, category: str, rows: Mapping[tuple[str, str], Row], listed: Container[tuple[str, str]]
) -> None:
    results, details = io.StringIO(), io.StringIO()
    lines = csv.writer(results, lineterminator="\n")
    table = csv.DictWriter(details, [field.name for field in fields(Row)], lineterminator="\n")
    table.writeheader()
    for key, row in rows.items():
        if key in listed:
            names = (safe_text.csv(category), _path(row.onnx), _path(row.vnnlib))
            lines.writerow([*names, f"{row.prepare:.3f}", row.result, f"{row.seconds:.3f}"])
        cells = {name: safe_text.csv(cell) for name, cell in asdict(row).items()}
        table.writerow(cells | {"onnx": _path(row.onnx), "vnnlib": _path(row.vnnlib)})
    write(folder / "results.csv", results.getvalue(), create_folder=True)
    write(folder / "details.csv", details.getvalue())


def _path(path: str) -> str:
    """Return a path that no spreadsheet takes for a formula; it leads to the same file."""
    return f"./{path}" if path.startswith(tuple(safe_text.FORMULA)) else path
