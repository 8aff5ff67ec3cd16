"""Known issues: inputs, models or certifiers that are known to fail, each with its reason. Imports nothing heavy.

A YAML list:

    - {certifier: "lipsdp*", model: mlp-ibp, kind: failed, reason: "the solver gives up; see issue 17"}
    - {model: cnn-plain, input: [3, 17], norm: 2, kind: unsound, reason: "fixed upstream, not released"}

`certifier` and `model` may hold `*` and `?`, and a norm is 2, inf, L2 or Linf. A key that is left out matches
everything, but one of certifier, model and input has to be there. Rows that an entry matches and that have its problem
are known: they are shown with their problem, but do not decide the exit code. An entry is stale if it matches rows, but
none of them has the problem any more.
"""

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from certbench.core import registry
from certbench.core.claims import Outcome
from certbench.errors import ConfigError
from certbench.files.reading import read_text
from certbench.files.yaml_lines import at, read
from certbench.results.rows import Row

Problem = Literal[
    "unsound", "failed", "timed out", "out of memory", "lost", "looser", "missing", "tighter", "label-flip"
]
"""Problems that may be known: of a row in one run, or of a row compared with an older one (`certbench compare`)."""

NORMS = ("L0", "L1", "L2", "Linf", "inf")


def _norm(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"a norm is a number, inf, or a word such as L2, not {value}")
    return float(value.removeprefix("L")) if isinstance(value, str) and value in NORMS else value


def _list(value: object) -> object:
    return [value] if isinstance(value, int) else value


def _index(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"an input is named by its index, not {value}")
    return value


class KnownIssue(BaseModel):
    """One entry of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: str = Field(min_length=1)
    kind: Problem
    certifier: str | None = None
    model: str | None = None
    norm: Annotated[float | None, BeforeValidator(_norm)] = None
    input: Annotated[tuple[Annotated[int, BeforeValidator(_index)], ...] | None, BeforeValidator(_list)] = None

    @model_validator(mode="after")
    def _somewhere(self) -> "KnownIssue":
        if self.certifier is None and self.model is None and self.input is None:
            raise ValueError("say which rows are meant: give certifier, model or input")
        return self

    def concerns(self, certifier: str, name: str, model: str, norm: float, index: int) -> bool:
        """Say whether the entry matches a row, with or without the problem; its certifier by its label or its name."""
        return (
            (self.certifier is None or any(fnmatch.fnmatchcase(text, self.certifier) for text in (certifier, name)))
            and (self.model is None or fnmatch.fnmatchcase(model, self.model))
            and (self.norm is None or self.norm == norm)
            and (self.input is None or index in self.input)
        )

    def __str__(self) -> str:
        """Return the entry as one line."""
        places = {"certifier": self.certifier, "model": self.model, "norm": self.norm, "input": self.input}
        said = ", ".join(f"{key} {value}" for key, value in places.items() if value is not None)
        return f"{self.kind}: {said} ({self.reason})"


@dataclass(frozen=True)
class KnownIssues:
    """The entries of a file, or none."""

    entries: Sequence[KnownIssue] = ()

    def of(self, row: Row, problem: str) -> KnownIssue | None:
        """Return the entry that names this problem of this row."""
        return next((entry for entry in self.entries if entry.kind == problem and _concerns(entry, row)), None)

    def split(self, rows: Iterable[tuple[Row, str]]) -> tuple[list[tuple[Row, str]], list[tuple[Row, KnownIssue]]]:
        """Split rows with their problems into new ones and known ones."""
        fresh, known = [], []
        for row, problem in rows:
            entry = self.of(row, problem)
            if entry is None:
                fresh.append((row, problem))
            else:
                known.append((row, entry))
        return fresh, known

    def stale(self, rows: Iterable[Row], problems: Iterable[tuple[Row, str]]) -> list[KnownIssue]:
        """Return the entries that match some of these rows, if none of those has the problem any more."""
        alive = {entry for row, problem in problems if (entry := self.of(row, problem)) is not None}
        rows = list(rows)
        return [e for e in self.entries if e not in alive and any(_concerns(e, row) for row in rows)]


def problem(row: Row) -> str | None:
    """Return the problem of a row of one run, a word of `Problem`, if it has one."""
    if row.unsound:
        return "unsound"
    if row.outcome in (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.OUT_OF_MEMORY):
        return str(row.outcome.value)
    return None


def load(path: Path) -> KnownIssues:
    """Read a file of known issues.

    Raises:
        ConfigError: the file cannot be read, or an entry is not understood; the message names file and line.
    """
    values, lines = read(read_text(path, "the known issues"), path)
    if not isinstance(values, list):
        raise ConfigError(f"{path}: known issues are a list of entries, each with a reason")
    entries = []
    for i, value in enumerate(values):
        try:
            entries.append(KnownIssue.model_validate(value))
        except ValidationError as error:
            raise ConfigError(at(path, lines, *_first(error, i))) from error
    return KnownIssues(tuple(entries))


def _first(error: ValidationError, index: int) -> tuple[tuple[str | int, ...], str]:
    """Return the place of the first mistake, and a message; a misspelt key comes before the key that it replaces."""
    found: Any = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    where = (index, *(part for part in found["loc"] if isinstance(part, int) or "-" not in part))
    if found["type"] == "extra_forbidden":
        return where, registry.unknown("key", str(where[-1]), KnownIssue.model_fields)
    return where, found["msg"].removeprefix("Value error, ")


def _concerns(entry: KnownIssue, row: Row) -> bool:
    name = str(row.spec.get("name", row.certifier))
    return entry.concerns(row.certifier, name, row.model, row.norm, row.input)
