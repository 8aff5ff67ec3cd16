"""Instances of the competition of verifiers (VNN-COMP): they are answered, in the format that it wants."""

import copy
import csv
import hashlib
import io
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import torch

from certbench.core.properties import Property
from certbench.core.registry import unknown
from certbench.errors import CertbenchError, ConfigError, StoreError
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
"""Stored answers that are computed again, by the name of the choice."""


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

    After each instance `results.csv` (category, onnx, vnnlib, seconds to prepare, result, seconds to run) and
    `details.csv` are written. A counterexample is written beside them before its answer.

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
    chosen = [one for one in reading.instances(root) if only in f"{one.onnx},{one.vnnlib}"]
    if not chosen:
        raise ConfigError(f"no instance has {only!r} in its names", ("only",))
    category = Path(root).resolve().name
    rows = stored(folder)
    last: tuple[Path, Problem] | None = None
    for one in chosen:
        key, name = (one.onnx, one.vnnlib), digest(one)
        old = rows.get(key)
        if old is None or old.digest != name or old.result in RERUN[rerun]:
            start = time.perf_counter()
            found = Row(*key, 0.0, "error", 0.0, one.limit * scale, digest=name)
            try:
                if last is None or last[0] != one.network:
                    last = None
                    last = one.network, Problem(one.network)
                wanted = reading.load(one.property)
                prepared = time.perf_counter() - start
                found = replace(found, prepare=prepared)
                found = _answered(last[1], wanted, found, folder)
            except StoreError:
                raise
            except CertbenchError as error:
                found = replace(found, reason=str(error))
            except (MemoryError, RuntimeError) as error:  # of one instance; the others go on
                found = replace(found, reason=f"{type(error).__name__}: {error}")
            rows[key] = found
            _store(folder, category, rows)
        yield rows[key]


def _answered(problem: Problem, wanted: Property, row: Row, folder: Path) -> Row:
    start = time.perf_counter()
    decision = problem.decide(wanted, row.limit)
    seconds = time.perf_counter() - start
    row = replace(row, seconds=seconds, result=decision.verdict, method=decision.method, reason=decision.reason)
    if decision.verdict in ("sat", "unsat") and seconds > row.limit:
        return replace(row, result="timeout", reason=f"{decision.verdict}, but after the time limit")
    if decision.witness is not None and decision.outputs is not None:
        content = witnesses.text(decision.witness.tolist(), decision.outputs.tolist())
        write(folder / witnesses.name_of(row.onnx, row.vnnlib), content, create_folder=True)
    return row


def stored(folder: Path) -> dict[tuple[str, str], Row]:
    """Read the stored rows of a folder.

    Raises:
        StoreError: they cannot be read.
    """
    path = folder / "details.csv"
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [_row(cells) for cells in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise StoreError(f"{path} cannot be read: {error}; give another folder, or delete it") from error
    return {(row.onnx, row.vnnlib): row for row in rows}


def _row(cells: dict[str, str]) -> Row:
    prepare, seconds, limit = (float(cells[name]) for name in ("prepare", "seconds", "limit"))
    onnx, vnnlib, result = (cells[name] for name in ("onnx", "vnnlib", "result"))
    return Row(onnx, vnnlib, prepare, result, seconds, limit, cells["method"], cells["reason"], cells["digest"])


def _store(folder: Path, category: str, rows: dict[tuple[str, str], Row]) -> None:
    results, details = io.StringIO(), io.StringIO()
    lines = csv.writer(results, lineterminator="\n")
    table = csv.DictWriter(details, [field.name for field in fields(Row)], lineterminator="\n")
    table.writeheader()
    for row in rows.values():
        lines.writerow([category, row.onnx, row.vnnlib, f"{row.prepare:.3f}", row.result, f"{row.seconds:.3f}"])
        table.writerow(asdict(row))
    write(folder / "results.csv", results.getvalue(), create_folder=True)
    write(folder / "details.csv", details.getvalue())
