"""The store: keys of content alone, one answer per key, and nothing lost to a kill or a full disk."""

import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certbench.core.claims import Guarantee, Outcome, Subject
from certbench.errors import StoreError
from certbench.results import store as stores
from certbench.results.store import Counterexample, Planned, PlannedEstimate, Store, StoredAnswer
from certbench.runs.keys import content_key

PLANNED = Planned("key", "attack", "net", "crown", {"name": "crown"}, Guarantee.SOUND, Subject.BASE, 2.0, (0, 1), 0, 3)
RESULT = StoredAnswer("key", 3, 0.5, math.inf, 1.0, 2.0, Outcome.COMPLETED, "", {"bracket": [0.5, math.inf]})
FOUND = Counterexample("attack", 0.75, "PGD", b"point")

values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=8,
)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    store = Store(tmp_path / "run" / "results.db")
    yield store
    store.close()


@given(st.dictionaries(st.text(), values), st.randoms())
def test_a_key_does_not_depend_on_the_order_of_its_parts(parts: dict[str, Any], random: Any) -> None:
    shuffled = list(parts.items())
    random.shuffle(shuffled)
    assert content_key(**parts) == content_key(**dict(shuffled))


@given(st.dictionaries(st.text(), st.integers()), st.dictionaries(st.text(), st.integers()))
def test_two_contents_have_two_keys(one: dict[str, int], other: dict[str, int]) -> None:
    assert (content_key(**one) == content_key(**other)) == (one == other)


def test_infinities_have_keys_and_nan_has_none() -> None:
    assert len({content_key(p=p) for p in (math.inf, -math.inf, 1.0, 2.0)}) == 4
    assert content_key(domain=(0.0, 1.0)) == content_key(domain=[0.0, 1.0])
    with pytest.raises(ValueError, match="JSON"):
        content_key(p=math.nan)


def test_what_is_written_is_read(store: Store) -> None:
    store.plan([PLANNED, replace(PLANNED, key="other", domain=None, norm=math.inf)])
    store.put([RESULT])
    store.put_attacks([FOUND])
    (row,) = store.rows()
    assert (row.model, row.norm, row.domain, row.label, row.spec) == ("net", 2.0, (0, 1), 3, {"name": "crown"})
    assert (row.prediction, row.radius, row.upper, row.outcome) == (3, 0.5, 0.75, Outcome.COMPLETED)
    assert row.evidence == {"bracket": [0.5, "inf"]}
    assert store.missing() == 1
    assert store.outcomes() == {"key": Outcome.COMPLETED}
    assert store.attacked() == {"attack": 0.75}


def test_a_later_answer_replaces_an_earlier_one(store: Store) -> None:
    store.plan([PLANNED])
    store.put([replace(RESULT, outcome=Outcome.FAILED, radius=0.0, reason="why")])
    store.put([RESULT])
    assert [(row.radius, row.reason) for row in store.rows()] == [(0.5, "")]


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if not outcome.answered])
def test_no_failure_replaces_an_answer(store: Store, outcome: Outcome) -> None:
    none = replace(RESULT, radius=0.0, outcome=outcome, evidence={"reason": "none"}, reason="none")
    store.plan([PLANNED])
    store.put([none])
    store.put([replace(none, reason="other")])
    assert store.rows()[0].reason == "other"
    store.put([RESULT])
    store.put([none])
    assert (store.rows()[0].radius, store.rows()[0].outcome) == (0.5, Outcome.COMPLETED)


@pytest.mark.parametrize("distances", [(0.5, 0.75), (0.75, 0.5), (0.5, math.inf), (math.inf, 0.5), (0.5, 0.5)])
def test_the_closest_counterexample_stays(store: Store, distances: tuple[float, float]) -> None:
    for distance in distances:
        store.put_attacks([replace(FOUND, distance=distance, attack=str(distance))])
    assert store.attacked() == {"attack": 0.5}


def test_a_plan_replaces_the_one_before_and_keeps_the_results(store: Store) -> None:
    store.plan([PLANNED])
    store.put([RESULT])
    store.plan([])
    assert store.rows() == []
    store.plan([replace(PLANNED, model="renamed")])
    assert [(row.model, row.radius) for row in store.rows()] == [("renamed", 0.5)]


def test_counterexamples_of_the_base_say_nothing_of_a_smoothed_classifier(store: Store) -> None:
    store.plan([replace(PLANNED, subject=Subject.SMOOTHED)])
    store.put([RESULT])
    store.put_attacks([replace(FOUND, distance=0.1)])
    (row,) = store.rows()
    assert row.upper == math.inf
    assert not row.unsound


GUESS = PlannedEstimate("guess", "attack", "net", "clever(radius=1)", 2.0, (0, 1), 0, 1.0)


def test_estimates_are_read_apart_from_certificates(store: Store) -> None:
    store.plan([PLANNED], [GUESS, replace(GUESS, key="none", input=1, attack=""), replace(GUESS, key="later", input=2)])
    store.put([RESULT])
    store.put_attacks([FOUND])
    store.put_estimates({"guess": 0.875, "none": math.nan})
    first, none = store.estimates()
    assert (first.model, first.method, first.norm, first.domain) == ("net", "clever(radius=1)", 2.0, (0, 1))
    assert (first.value, first.cap, first.upper, first.refuted) == (0.875, 1.0, 0.75, True)
    assert math.isnan(none.value) and none.upper == math.inf and not none.refuted
    assert store.estimated() == {"guess", "none"}
    assert [row.radius for row in store.rows()] == [0.5]
    assert store.outcomes() == {"key": Outcome.COMPLETED}
    store.plan([PLANNED])
    assert store.estimates() == [] and store.estimated() == {"guess", "none"}


FIRST = """
CREATE TABLE plan (
    position INTEGER PRIMARY KEY, key TEXT NOT NULL, attack TEXT NOT NULL, model TEXT NOT NULL,
    certifier TEXT NOT NULL, spec TEXT NOT NULL, guarantee TEXT NOT NULL, subject TEXT NOT NULL,
    norm REAL NOT NULL, domain TEXT NOT NULL, input INTEGER NOT NULL, label INTEGER NOT NULL);
CREATE TABLE results (
    key TEXT PRIMARY KEY, prediction INTEGER NOT NULL, radius REAL NOT NULL, upper REAL NOT NULL,
    seconds REAL NOT NULL, prepare_seconds REAL NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL,
    evidence TEXT NOT NULL);
CREATE TABLE attacks (
    key TEXT PRIMARY KEY, distance REAL NOT NULL, attack TEXT NOT NULL, point BLOB);
PRAGMA user_version = 1;
INSERT INTO plan VALUES (0, 'key', 'attack', 'net', 'crown', '{"name": "crown"}', 'sound', 'base', 2.0, '[0, 1]', 0, 3);
INSERT INTO plan VALUES (1, 'new', '', 'net', 'crown', '{"name": "crown"}', 'sound', 'base', 2.0, '[0, 1]', 1, 3);
INSERT INTO results VALUES ('key', 3, 0.5, 9e999, 1.0, 2.0, 'completed', '', '{}');
"""
"""The first files of version 1."""

CPU = "ALTER TABLE results ADD COLUMN cpu_seconds REAL; UPDATE results SET cpu_seconds = 3.0;"

GUESSES = """
CREATE TABLE estimate_plan (
    position INTEGER PRIMARY KEY, key TEXT NOT NULL, attack TEXT NOT NULL, model TEXT NOT NULL, method TEXT NOT NULL,
    norm REAL NOT NULL, domain TEXT NOT NULL, input INTEGER NOT NULL, cap REAL NOT NULL);
CREATE TABLE estimates (key TEXT PRIMARY KEY, value REAL);
INSERT INTO estimate_plan VALUES (0, 'guess', 'attack', 'net', 'clever', 2.0, '[0, 1]', 0, 1.0);
INSERT INTO estimates VALUES ('guess', 0.25);
"""


@pytest.mark.parametrize(
    ("content", "cpu", "guesses"), [(FIRST, None, []), (FIRST + CPU, 3.0, []), (FIRST + GUESSES + CPU, 3.0, [0.25])]
)
def test_a_file_of_version_1_is_read_as_it_is_and_brought_up_to_date_by_the_next_run(
    tmp_path: Path, content: str, cpu: float | None, guesses: list[float]
) -> None:
    path = tmp_path / "results.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(content)
    before = path.read_bytes()
    old = Store(path, create=False)
    first = old.rows()
    assert [(row.radius, row.cpu_seconds, row.domain) for row in first] == [(0.5, cpu, (0, 1))]
    assert [guess.value for guess in old.estimates()] == guesses
    old.close()
    assert path.read_bytes() == before
    copy = Store(tmp_path / "merged.db")
    copy.take(path)
    assert (copy.rows(), [guess.value for guess in copy.estimates()]) == (first, guesses)
    copy.close()
    new = Store(path)
    assert new.rows() == first
    new.put([replace(RESULT, key="new", cpu_seconds=4.0)])
    assert [row.cpu_seconds for row in new.rows()] == [cpu, 4.0]
    new.plan([PLANNED], [GUESS])
    new.put_estimates({"guess": 0.5})
    assert [guess.value for guess in new.estimates()] == [0.5]
    assert new._version() == stores.VERSION > 1
    new.close()


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(FIRST)
    before = path.read_bytes()
    monkeypatch.setattr(stores, "_ESTIMATES", f"{stores._ESTIMATES} CREATE TABLE;")  # it breaks at its end
    with pytest.raises(StoreError, match="incomplete input"):
        Store(path)
    assert path.read_bytes() == before


def test_a_killed_writer_loses_only_its_last_transaction(tmp_path: Path) -> None:
    code = """
import itertools, math, sys
from pathlib import Path
from certbench.results.store import StoredAnswer, Store
from certbench.core.claims import Outcome
store = Store(Path(sys.argv[1]))
for i in itertools.count():
    store.put([StoredAnswer(f"{i}-{j}", 1, 0.5, math.inf, 0.0, 0.0, Outcome.COMPLETED, "", {}) for j in range(50)])
    print(i, flush=True)
"""
    path = tmp_path / "results.db"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(5):
            told = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
        told = max([told, *(int(line) for line in writer.stdout)])
    store = Store(path)
    found = store.outcomes().keys()
    assert {f"{i}-{j}" for i in range(told + 1) for j in range(50)} <= found
    assert len(found) % 50 == 0  # whole transactions
    store.put([RESULT])
    store.close()


def test_a_full_disk_is_said_and_what_was_stored_stays(store: Store) -> None:
    store.plan([PLANNED])
    store.put([RESULT])
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match=r"results\.db: database or disk is full; what was stored before is intact"):
        store.put([replace(RESULT, key=str(i), reason="x" * 5000) for i in range(9)])
    assert [row.radius for row in store.rows()] == [0.5]
    store._connection.execute("PRAGMA max_page_count = 100000")
    store.put([replace(RESULT, radius=0.25)])
    assert [row.radius for row in store.rows()] == [0.25]


@pytest.mark.parametrize("create", [True, False])
def test_a_file_of_a_later_version_is_refused_and_left_as_it_is(tmp_path: Path, create: bool) -> None:
    path = tmp_path / "results.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"{FIRST} PRAGMA user_version = 99;")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"a later version of certbench: its format is 99.*Install a newer"):
        Store(path, create=create)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.db"]


@pytest.mark.parametrize("content", [b"this is no database, " * 99, b"SQLite format 3\0" + b"\xff" * 999])
def test_what_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.db").write_bytes(content)
    with pytest.raises(StoreError, match=r"results\.db"):
        Store(tmp_path / "results.db")
    assert (tmp_path / "results.db").read_bytes() == content


def test_a_word_that_no_version_wrote_is_refused(store: Store) -> None:
    store.plan([PLANNED])
    store.put([RESULT])
    store._connection.execute("UPDATE results SET outcome = 'perhaps'")
    for read in (store.outcomes, store.rows):
        with pytest.raises(StoreError, match="perhaps"):
            read()


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("results", "radius", "'nan'"),
        ("results", "radius", "x'00'"),
        ("results", "radius", "-5.0"),
        ("results", "seconds", "-1"),
        ("results", "prediction", "-2"),
        ("attacks", "distance", "-0.5"),
        ("plan", "label", "-1"),
        ("results", "prediction", "'three'"),
        ("results", "upper", "'nan'"),
        ("results", "reason", "x'00'"),
        ("results", "evidence", "'[1]'"),
        ("results", "evidence", "'{'"),
        ("results", "evidence", "x'ff'"),
        ("attacks", "distance", "'near'"),
        ("plan", "norm", "'L2'"),
        ("plan", "input", "0.5"),
        ("plan", "spec", "'[1]'"),
        ("plan", "spec", "'\"crown\"'"),
        ("plan", "domain", "'3'"),
        ("plan", "domain", "'[0]'"),
        ("plan", "domain", '\'["a", "b"]\''),
        ("plan", "guarantee", "'perhaps'"),
    ],
)
def test_a_row_that_no_version_wrote_is_refused(store: Store, table: str, column: str, value: str) -> None:
    store.plan([PLANNED])
    store.put([RESULT])
    store.put_attacks([FOUND])
    store._connection.execute(f"UPDATE {table} SET {column} = {value}")
    with pytest.raises(StoreError, match=r"results\.db: the row net, crown is no row of a run: "):
        store.rows()


def test_an_estimate_that_no_version_wrote_is_refused(store: Store) -> None:
    store.plan([PLANNED], [GUESS])
    store.put_estimates({"guess": 0.5})
    store._connection.execute("UPDATE estimates SET value = 'half'")
    with pytest.raises(StoreError, match="half"):
        store.estimates()


def test_a_file_that_is_only_read_must_be_a_run_s_and_stays_as_it_is(store: Store, tmp_path: Path) -> None:
    store.plan([PLANNED])
    store.put([RESULT])
    before = store.path.read_bytes()
    reader = Store(store.path, create=False)
    assert [row.radius for row in reader.rows()] == [0.5]
    with pytest.raises(StoreError, match="readonly"):
        reader.put([RESULT])
    reader.close()
    assert store.path.read_bytes() == before
    empty = tmp_path / "a folder?" / "results.db"
    with pytest.raises(StoreError, match="cannot read"):
        Store(empty, create=False)
    empty.parent.mkdir()
    empty.touch()
    with pytest.raises(StoreError, match="is empty, or not the store of a run"):
        Store(empty, create=False)
    assert empty.read_bytes() == b""


def test_places_where_no_file_can_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.db").mkdir()
    for path in (tmp_path / "file" / "results.db", tmp_path / "folder.db", Path("/proc/no/results.db")):
        with pytest.raises(StoreError, match="cannot read or write"):
            Store(path)


def test_a_run_that_cannot_be_written_can_be_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "PATIENCE", 0.0)
    store.plan([PLANNED])
    store.put([RESULT])
    locked = sqlite3.connect(store.path, isolation_level=None)
    locked.execute("BEGIN IMMEDIATE")  # root may write to a read-only file, but not to one that another process writes
    reader = Store(store.path)
    assert [row.radius for row in reader.rows()] == [0.5]
    reader._connection.execute("PRAGMA busy_timeout = 10")
    with pytest.raises(StoreError, match="locked"):
        reader.put([RESULT])
    locked.execute("ROLLBACK")
    reader._connection.execute("PRAGMA query_only = 1")
    with pytest.raises(StoreError, match="readonly"):
        reader.put([RESULT])
    reader.close()
    locked.close()


def test_a_damaged_file_is_called_damaged(store: Store) -> None:
    store.plan([PLANNED])
    store.put([replace(RESULT, key=str(i), reason="x" * 1000) for i in range(99)])
    store.close()
    store.path.write_bytes(store.path.read_bytes()[:-8192])
    with pytest.raises(StoreError, match="the file is damaged: give a copy of before") as caught:
        Store(store.path, create=False).outcomes()
    assert "intact" not in str(caught.value)


@pytest.mark.parametrize("before", ["BEGIN; SELECT * FROM results", "BEGIN IMMEDIATE"])
def test_a_writer_waits_for_whoever_holds_the_lock(store: Store, before: str) -> None:
    store.plan([PLANNED])
    store.put([RESULT])
    other = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
    for statement in before.split("; "):
        other.execute(statement).fetchone()
    store._connection.execute("PRAGMA busy_timeout = 50")  # far less than the lock is held
    release = threading.Timer(0.5, lambda: other.execute("ROLLBACK"))
    release.start()
    store.put([replace(RESULT, radius=0.25)])
    release.join()
    other.close()
    assert [row.radius for row in store.rows()] == [0.25]
