"""The store of a run: SQLite, one writer, rows as they come, keyed by content. Imports nothing heavy.

There are three tables of answers. `plan` says which rows the suite asked for last, with the names it gave them.
`results` and `attacks` hold answers under keys made of content alone (parameters, code, input, options, seed), so that
a changed model never meets an old answer, and a renamed one finds its own. Estimates prove nothing. They have two
tables of their own, so that none is ever read as a certificate. Domains and scales with many numbers stand in `boxes`,
once; the plan has their names. The file is long because all SQL stands here.

The version of the format is SQLite's `user_version`. A file of an earlier one is brought up to date by the next run;
who only reads it sees what is missing as empty, and changes nothing. A file of a later one is refused.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from certbench.core.claims import Guarantee, Outcome, Subject
from certbench.core.threat import Domain, Numbers, written
from certbench.errors import StoreError
from certbench.files.json_text import plain
from certbench.results.rows import Estimate, Row
from certbench.results.stored import Boxes, estimate_of, named, row_of

_SCHEMA = """
CREATE TABLE IF NOT EXISTS plan (
    position INTEGER PRIMARY KEY, key TEXT NOT NULL, attack TEXT NOT NULL, model TEXT NOT NULL,
    certifier TEXT NOT NULL, spec TEXT NOT NULL, guarantee TEXT NOT NULL, subject TEXT NOT NULL,
    norm REAL NOT NULL, domain TEXT NOT NULL, input INTEGER NOT NULL, label INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS results (
    key TEXT PRIMARY KEY, prediction INTEGER NOT NULL, radius REAL NOT NULL, upper REAL NOT NULL,
    seconds REAL NOT NULL, prepare_seconds REAL NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL,
    evidence TEXT NOT NULL, cpu_seconds REAL);
CREATE TABLE IF NOT EXISTS attacks (
    key TEXT PRIMARY KEY, distance REAL NOT NULL, attack TEXT NOT NULL, point BLOB);
"""
_ESTIMATES = """
CREATE TABLE IF NOT EXISTS estimate_plan (
    position INTEGER PRIMARY KEY, key TEXT NOT NULL, attack TEXT NOT NULL, model TEXT NOT NULL, method TEXT NOT NULL,
    norm REAL NOT NULL, domain TEXT NOT NULL, input INTEGER NOT NULL, cap REAL NOT NULL);
CREATE TABLE IF NOT EXISTS estimates (key TEXT PRIMARY KEY, value REAL);
CREATE TABLE IF NOT EXISTS boxes (name TEXT PRIMARY KEY, content TEXT NOT NULL);
"""
_RESULT = (
    "key", "prediction", "radius", "upper", "seconds", "prepare_seconds", "outcome", "reason", "evidence",
    "cpu_seconds",
)  # fmt: skip
PATIENCE = 120.0
"""Seconds to wait for somebody else's lock on the file."""

VERSION = 2
"""Version of the format that is written. Files of version 1 may lack CPU seconds, estimates and `boxes`."""

SHORT = 200
"""Number of characters from which on a domain with its scales is stored once, under a name."""


@dataclass(frozen=True)
class Planned:
    """One row that a suite asks for, before it is computed; `attack` is the key of its counterexample."""

    key: str
    attack: str
    model: str
    certifier: str
    spec: Mapping[str, Any]
    guarantee: Guarantee
    subject: Subject
    norm: float
    domain: Domain | None
    input: int
    label: int
    scale: Numbers | None = None


@dataclass(frozen=True)
class PlannedEstimate:
    """One estimate that a suite asks for, before it is computed; `attack` is the key of its counterexample."""

    key: str
    attack: str
    model: str
    method: str
    norm: float
    domain: Domain | None
    input: int
    cap: float
    scale: Numbers | None = None


@dataclass(frozen=True)
class StoredAnswer:
    """The answer computed for one key."""

    key: str
    prediction: int
    radius: float
    upper: float
    seconds: float
    prepare_seconds: float
    outcome: Outcome
    reason: str
    evidence: Mapping[str, Any]
    cpu_seconds: float | None = None


@dataclass(frozen=True)
class Counterexample:
    """The closest known counterexample for one key; `point` is its float64 bytes, None if there is none."""

    key: str
    distance: float
    attack: str
    point: bytes | None


@dataclass(frozen=True)
class Progress:
    """How far the rows of one certifier on one model are.

    Attributes:
        model: its name.
        norm: exponent of the norm.
        certifier: its name in tables.
        planned: number of rows that the suite asks for.
        done: number of rows that were computed.
        unanswered: number of those without an answer.
        seconds: time that they took together.
    """

    model: str
    norm: float
    certifier: str
    planned: int
    done: int
    unanswered: int
    seconds: float


class Store:
    """A run's database; one process writes it.

    Raises:
        StoreError: from every method, if the file cannot be read or written (a full disk, say).
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Open the file.

        Args:
            path: path of the file.
            create: whether to make the file if it is missing; if not, it is only read, and must be the store of a run.
        """
        self.path = path
        with self._guard(), ExitStack() as undo:
            if create:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._connection = sqlite3.connect(path, isolation_level=None)
            else:  # "ro" could not roll back what a killed writer left
                uri = f"{path.absolute().as_uri()}?mode=rw"
                self._connection = sqlite3.connect(uri, isolation_level=None, uri=True, timeout=PATIENCE)
            undo.callback(self._connection.close)
            version = self._version()
            if version > VERSION:
                raise StoreError(
                    f"{path} was written by a later version of certbench: its format is {version}, and this version "
                    f"knows those up to {VERSION}. Install a newer certbench; the file is left as it was"
                )
            if version < 0 or (version == 0 and not create):
                raise StoreError(f"{path} is empty, or not the store of a run")
            if version == 0:  # new
                self._connection.executescript(
                    f"BEGIN; {_SCHEMA} {_ESTIMATES} PRAGMA user_version = {VERSION}; COMMIT;"
                )
            elif version < VERSION:
                self._migrate() if create else self._complete()
            if not create:
                self._connection.execute("PRAGMA query_only = 1")
            undo.pop_all()

    def _version(self) -> int:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        return int(version)

    def _migrate(self) -> None:
        """Bring a file of version 1 up to date, in one transaction: a kill leaves it as it was."""
        with self._transaction():
            if not self._has_cpu_seconds():
                self._connection.execute("ALTER TABLE results ADD COLUMN cpu_seconds REAL")
            for statement in _ESTIMATES.split(";")[:-1]:
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {VERSION}")

    def _complete(self) -> None:
        """Let what a file of version 1 lacks be seen as empty by this connection; the file stays as it is."""
        self._connection.execute("PRAGMA temp_store = MEMORY")
        tables = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for statement in _ESTIMATES.split(";")[:-1]:
            if statement.partition("EXISTS ")[2].partition(" ")[0] not in tables:
                self._connection.execute(statement.replace("CREATE TABLE", "CREATE TEMP TABLE"))
        if not self._has_cpu_seconds():
            columns = ", ".join(_RESULT[:-1])
            self._connection.execute(
                f"CREATE TEMP VIEW results AS SELECT {columns}, NULL AS cpu_seconds FROM main.results"
            )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def plan(self, planned: Sequence[Planned], estimates: Sequence[PlannedEstimate] = ()) -> None:
        """Replace what the suite asks for; results stay."""
        boxes: dict[str, str] = {}

        @cache
        def box(domain: Domain | None, scale: Numbers | None) -> str:
            text = json.dumps(plain(written(domain, scale)))
            if len(text) < SHORT:
                return text
            name = hashlib.sha256(text.encode()).hexdigest()
            boxes[name] = text
            return json.dumps(name)

        specs: dict[int, str] = {}  # the rows of a pair share theirs
        for p in planned:
            if id(p.spec) not in specs:
                specs[id(p.spec)] = json.dumps(plain(p.spec))
        values = [
            (
                *(i, p.key, p.attack, p.model, p.certifier, specs[id(p.spec)], p.guarantee.value),
                *(p.subject.value, p.norm, box(p.domain, p.scale), p.input, p.label),
            )
            for i, p in enumerate(planned)
        ]
        with self._transaction():
            self._connection.execute("DELETE FROM plan")
            self._connection.executemany(f"INSERT INTO plan VALUES ({','.join('?' * 12)})", values)
            self._connection.execute("DELETE FROM estimate_plan")
            self._connection.executemany("INSERT OR REPLACE INTO boxes VALUES (?,?)", boxes.items())
            self._connection.executemany(
                "INSERT INTO estimate_plan VALUES (?,?,?,?,?,?,?,?,?)",
                [
                    (i, e.key, e.attack, e.model, e.method, e.norm, box(e.domain, e.scale), e.input, e.cap)
                    for i, e in enumerate(estimates)
                ],
            )

    def put(self, results: Iterable[StoredAnswer]) -> None:
        """Write results in one transaction; a later one replaces an earlier one, but no failure replaces an answer."""
        values = [
            (
                *(r.key, r.prediction, r.radius, r.upper, r.seconds, r.prepare_seconds, r.outcome.value, r.reason),
                *(json.dumps(plain(r.evidence)), r.cpu_seconds),
            )
            for r in results
        ]
        self._put(values)

    def _put(self, values: Sequence[Sequence[Any]]) -> None:
        columns = ", ".join(_RESULT)
        changes = ", ".join(f"{name} = excluded.{name}" for name in _RESULT[1:])
        answers = ", ".join(f"'{outcome.value}'" for outcome in Outcome if outcome.answered)
        with self._transaction():
            self._connection.executemany(
                f"INSERT INTO results ({columns}) VALUES ({','.join('?' * 10)}) "
                f"ON CONFLICT (key) DO UPDATE SET {changes} "
                f"WHERE excluded.outcome IN ({answers}) OR outcome NOT IN ({answers})",
                values,
            )

    def put_attacks(self, found: Iterable[Counterexample]) -> None:
        """Write counterexamples in one transaction; a closer one replaces a farther one, never the reverse."""
        with self._transaction():
            self._connection.executemany(
                "INSERT INTO attacks VALUES (?,?,?,?) ON CONFLICT (key) DO UPDATE SET distance = excluded.distance, "
                "attack = excluded.attack, point = excluded.point WHERE excluded.distance < distance",
                [(c.key, c.distance, c.attack, c.point) for c in found],
            )

    def put_estimates(self, values: Mapping[str, float]) -> None:
        """Write estimates by key in one transaction; NaN says that none came out."""
        with self._transaction():
            self._connection.executemany("INSERT OR REPLACE INTO estimates VALUES (?,?)", values.items())

    def take(self, other: Path) -> None:
        """Take the plan and the results of another store of the same suite, as `put` and the others do."""
        theirs = Store(other, create=False)
        try:
            for table in ("plan", "estimate_plan", "boxes"):
                self._copy(theirs, table)
            with theirs._guard():
                rows = theirs._connection.execute(f"SELECT {', '.join(_RESULT)} FROM results").fetchall()
                attacks = theirs._connection.execute("SELECT key, distance, attack, point FROM attacks").fetchall()
            self._put(rows)
            self.put_attacks(Counterexample(*found) for found in attacks)
            self._copy(theirs, "estimates")
        finally:
            theirs.close()

    def _copy(self, theirs: "Store", table: str) -> None:
        """Copy a table; rows of the same key are replaced."""
        with theirs._guard():
            rows = theirs._connection.execute(f"SELECT * FROM {table}").fetchall()
        if rows:
            with self._transaction():
                marks = ",".join("?" * len(rows[0]))
                self._connection.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", rows)

    def outcomes(self) -> dict[str, Outcome]:
        """Return the outcome of each stored result, by key."""
        with self._guard():
            return {key: Outcome(text) for key, text in self._connection.execute("SELECT key, outcome FROM results")}

    def times(self) -> dict[str, tuple[Outcome, float]]:
        """Return the outcome and the seconds of each stored result, by key."""
        with self._guard():
            found = self._connection.execute("SELECT key, outcome, seconds FROM results")
            return {key: (Outcome(text), seconds) for key, text, seconds in found}

    def attacked(self) -> dict[str, float]:
        """Return the distance of each stored counterexample, by key."""
        with self._guard():
            return dict(self._connection.execute("SELECT key, distance FROM attacks"))

    def estimated(self) -> set[str]:
        """Return the keys of the stored estimates."""
        with self._guard():
            return {key for (key,) in self._connection.execute("SELECT key FROM estimates")}

    def estimates(self) -> list[Estimate]:
        """Return the computed estimates of the plan, in the plan's order."""
        query = (
            "SELECT p.model, p.method, p.norm, p.domain, p.input, e.value, p.cap, a.distance FROM estimate_plan p "
            "JOIN estimates e ON e.key = p.key LEFT JOIN attacks a ON a.key = p.attack ORDER BY p.position"
        )
        with self._guard():
            return [named(estimate_of, values, self._boxes()) for values in self._connection.execute(query).fetchall()]

    def rows(self) -> list[Row]:
        """Return the computed rows of the plan, in the plan's order."""
        return [row for row, _, _ in self.keyed_rows()]

    def keyed_rows(self) -> list[tuple[Row, str, str]]:
        """Return the computed rows of the plan, each with its key and the key of its counterexample."""
        with self._guard():
            query = (
                "SELECT p.key, p.attack, p.model, p.certifier, p.spec, p.guarantee, p.subject, p.norm, p.domain, "
                "p.input, p.label, r.prediction, r.radius, r.upper, r.seconds, r.prepare_seconds, r.outcome, r.reason, "
                "r.evidence, r.cpu_seconds, a.distance FROM plan p JOIN results r ON r.key = p.key "
                "LEFT JOIN attacks a ON a.key = p.attack ORDER BY p.position"
            )
            boxes, found = self._boxes(), self._connection.execute(query)
            return [(named(row_of, values, boxes), key, attack) for key, attack, *values in found]

    def counterexamples(self) -> dict[str, tuple[str, bytes]]:
        """Return the stored counterexamples by key: the attack that found each, and its float64 bytes."""
        query = "SELECT key, attack, point FROM attacks WHERE point IS NOT NULL"
        with self._guard():
            return {key: (attack, point) for key, attack, point in self._connection.execute(query)}

    def progress(self) -> list[Progress]:
        """Return how far each certifier is on each model, in the plan's order."""
        answers = ", ".join(f"'{outcome.value}'" for outcome in Outcome if outcome.answered)
        query = (
            f"SELECT p.model, p.norm, p.certifier, count(*), count(r.key), sum(r.outcome NOT IN ({answers})), "
            "sum(r.seconds) FROM plan p LEFT JOIN results r ON r.key = p.key "
            "GROUP BY p.model, p.norm, p.certifier, p.domain ORDER BY min(p.position)"
        )
        with self._guard():
            found = self._connection.execute(query).fetchall()
        return [
            Progress(model, norm, certifier, planned, done, unanswered or 0, seconds or 0.0)
            for model, norm, certifier, planned, done, unanswered, seconds in found
        ]

    def unattacked(self) -> int:
        """Return the number of inputs, of each model with base certifiers, for which an attack is not stored."""
        with self._guard():
            query = (
                "SELECT count(*) FROM (SELECT DISTINCT model, input FROM plan WHERE subject = ? "
                "AND attack NOT IN (SELECT key FROM attacks))"
            )
            (count,) = self._connection.execute(query, (Subject.BASE.value,)).fetchone()
        return int(count)

    def missing(self) -> int:
        """Return the number of planned rows that have not been computed."""
        with self._guard():
            query = "SELECT count(*) FROM plan WHERE key NOT IN (SELECT key FROM results)"
            (count,) = self._connection.execute(query).fetchone()
        return int(count)

    def _has_cpu_seconds(self) -> bool:
        columns = self._connection.execute("SELECT name FROM pragma_table_info('results')").fetchall()
        return ("cpu_seconds",) in columns

    def _boxes(self) -> Boxes:
        """Return a reader of the plan's domains and scales."""
        return Boxes(dict(self._connection.execute("SELECT name, content FROM boxes")))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._guard():
            self._patiently("BEGIN IMMEDIATE")
            try:
                yield
                self._patiently("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _patiently(self, statement: str) -> None:
        """Try again while somebody else, who only reads perhaps, holds the lock of the file.

        SQLite itself waits some seconds each time; in between, Ctrl-C is heard.
        """
        last = time.monotonic() + PATIENCE
        while True:
            try:
                self._connection.execute(statement)
                return
            except sqlite3.OperationalError as error:
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if code != sqlite3.SQLITE_BUSY or time.monotonic() > last:
                    raise

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:  # a full disk, a lock
            raise StoreError(f"cannot read or write {self.path}: {error}; what was stored before is intact") from error
        except (sqlite3.Error, ValueError, OverflowError) as error:  # ValueError: a word that no version wrote
            cure = "give a copy of before, or run the suite into another folder"
            raise StoreError(f"cannot read {self.path}: {error}; the file is damaged: {cure}") from error
