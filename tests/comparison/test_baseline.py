"""Baselines: what is written is read, nothing wrong is written, and a run is compared with it."""

import io
import json
import math
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from certbench import ABSTAIN, ConfigError, Guarantee, Outcome, StoreError, Subject
from certbench.cli import console as terminal
from certbench.comparison.baseline import read, read_baseline
from certbench.comparison.classes import Kind
from certbench.comparison.compare import compare
from certbench.comparison.output import SHAPES, told, told_baseline, told_update
from certbench.comparison.update import update_baseline
from certbench.results.store import Counterexample, Planned, Store, StoredAnswer

SPECS: dict[str, Any] = {
    "crown": (Guarantee.SOUND, Subject.BASE),
    "milp": (Guarantee.COMPLETE, Subject.BASE),
    "smoothing": (Guarantee.PROBABILISTIC, Subject.SMOOTHED),
}
EVIDENCE = {"counts": [12, 988], "n": 1000, "rule": "two-class", "seed": "0f", "selection": [1, 99], "p_lower": 0.97}


def write(folder: Path, *, attack: float = 0.8, unplanned: int = 0, **radii: list[float]) -> Path:
    """A run with one model, and a certifier per keyword with a radius per input; L2 in a box, and an L1 row."""
    store, planned, results = Store(folder / "results.db"), [], []
    for name, values in radii.items():
        guarantee, subject = SPECS[name]
        for i, radius in enumerate(values):
            key, spec, domain = f"{name}-{i}", {"name": name, "limit": "inf"}, (0.0, 1.0)
            planned.append(Planned(key, f"attack-{i}", "net", name, spec, guarantee, subject, 2.0, domain, i, 1))
            answer = 1 if radius > 0 else ABSTAIN
            outcome = Outcome.COMPLETED if radius > 0 else Outcome.ABSTAINED
            evidence = EVIDENCE if name == "smoothing" else {"bracket": [radius, radius * (1 + 1e-5)]}
            results.append(StoredAnswer(key, answer, radius, math.inf, 1.0, 1.0, outcome, "", evidence))
    planned += [replace(planned[0], key=f"later-{i}", norm=1.0, input=i) for i in range(unplanned)]
    store.plan(planned)
    store.put(results)
    store.put_attacks([Counterexample("attack-0", attack, "PGD", b"")])
    store.close()
    manifest = {
        "suite": {"name": "little"}, "models": {"net": "f" * 64}, "data": {"sha256": "d" * 64, "inputs": 2},
        "versions": {"certbench": "0.1.0", "torch": "2.13.0"}, "commit": "c0ffee",
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def update(folder: Path, reason: str, console: Console, path: Path | None = None) -> int:
    found = update_baseline(folder, reason, path)
    terminal.show(told_update(found), console)
    return found.exit_code


def show(path: Path, console: Console) -> None:
    terminal.show(told_baseline(read_baseline(path)), console)


def run(old: Path, new: Path, console: Console, **options: Any) -> int:
    comparison = compare(old, new, **options)
    terminal.show(told(comparison), console)
    return comparison.exit_code


ODD = 0.1 + 0.2
"""0.30000000000000004: seventeen digits, none of which may be lost."""


def test_what_is_written_is_read(tmp_path: Path, console: Console) -> None:
    folder = write(tmp_path / "run", crown=[ODD, math.inf, 1e-300], milp=[0.4], smoothing=[0.25, 0.0])
    assert update(folder, "first", console, tmp_path / "b.json") == 0
    old, new = read(tmp_path / "b.json"), read(folder)
    assert len(old.rows) == len(new.rows) == 6
    names = ("model", "certifier", "spec", "guarantee", "subject", "norm", "domain", "input", "label", "prediction")
    for a, b in zip(old.rows, new.rows, strict=True):
        assert [getattr(a, name) for name in (*names, "radius", "outcome")] == [getattr(b, name) for name in (*names, "radius", "outcome")]  # fmt: skip  # noqa: E501
    assert old.rows[-1].evidence == {name: EVIDENCE[name] for name in ("counts", "n", "rule", "seed")}
    assert {change.kind for change in compare(old, new).changes} == {Kind.SAME}
    assert run(tmp_path / "b.json", folder, console) == 0


def test_one_row_is_one_line(tmp_path: Path, console: Console) -> None:
    write(tmp_path / "run", crown=[0.5, 0.25], smoothing=[0.25])
    update(tmp_path / "run", "first", console, tmp_path / "b.json")
    before = (tmp_path / "b.json").read_text().splitlines()
    assert "[0, 1, 1, 0.5]," in before and "[1, 1, 1, 0.25]" in before
    assert all(len(line) < 300 for line in before)
    write(tmp_path / "run", crown=[0.5, 0.3], smoothing=[0.25])
    assert update(tmp_path / "run", "better slopes", console, tmp_path / "b.json") == 0
    after = (tmp_path / "b.json").read_text().splitlines()
    added = [line for line in after if line not in before]
    assert len(added) == 2 + 1 and "[1, 1, 1, 0.3]" in added  # the row, a line of history, and a comma after the last
    history = json.loads((tmp_path / "b.json").read_text())["history"]
    assert [(entry["reason"], entry["changed"]) for entry in history] == [
        ("first", "3 rows, new"), ("better slopes", "2 same, 1 tighter"),
    ]  # fmt: skip
    assert history[0]["commit"] == "c0ffee" and history[0]["date"].startswith("20")
    show(tmp_path / "b.json", console)
    text = said(console)
    assert "3 rows of 1 models" in text and "crown on net, L2: 2 inputs, mean radius 0.4" in text
    assert "better slopes  (2 same, 1 tighter)" in text and "torch 2.13.0" in text


def test_the_place_of_a_suite_s_baseline(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert update(write(tmp_path / "run", crown=[0.5]), "first", console) == 0
    assert (tmp_path / "reports" / "little" / "baseline.json").exists()


def test_nothing_wrong_or_half_becomes_a_baseline(tmp_path: Path, console: Console) -> None:
    path = tmp_path / "b.json"
    assert update(write(tmp_path / "refuted", crown=[0.9]), "x", console, path) == 3
    assert "input 0: radius 0.9" in said(console)
    assert update(write(tmp_path / "crossed", crown=[0.5], milp=[0.4]), "x", console, path) == 3
    assert update(write(tmp_path / "half", crown=[0.5], unplanned=1), "x", console, path) == 5
    assert not path.exists()
    for reason in ("", "  "):
        with pytest.raises(ConfigError, match="--reason"):
            update(write(tmp_path / "fine", crown=[0.5]), reason, console, path)
    assert update(write(tmp_path / "smoothed", smoothing=[0.9]), "attacks are of the base", console, path) == 0


def test_no_counterexample_is_forgotten(tmp_path: Path, console: Console) -> None:
    path = tmp_path / "b.json"
    update(write(tmp_path / "run", crown=[0.3], attack=0.5), "first", console, path)
    update(write(tmp_path / "weak", crown=[0.3], attack=math.inf), "attacks off", console, path)
    assert run(path, write(tmp_path / "bad", crown=[0.6], attack=math.inf), console) == 3
    assert "counterexample at 0.5" in said(console)
    assert update(tmp_path / "bad", "no", console, path) == 3


def test_an_exact_answer_keeps_its_bracket(tmp_path: Path, console: Console) -> None:
    folder = write(tmp_path / "run", milp=[0.4], crown=[0.4 * (1 + 5e-6)])  # within 1e-5, and no contradiction
    assert update(folder, "first", console, tmp_path / "b.json") == 0
    assert run(tmp_path / "b.json", folder, console) == 0
    assert run(tmp_path / "b.json", write(tmp_path / "above", milp=[0.4], crown=[0.401]), console) == 3


def test_a_run_is_held_to_its_baseline(tmp_path: Path, console: Console) -> None:
    path = tmp_path / "b.json"
    update(write(tmp_path / "run", crown=[0.5, 0.25]), "first", console, path)
    assert run(path, write(tmp_path / "looser", crown=[0.5, 0.2]), console) == 1
    assert run(path, write(tmp_path / "less", crown=[0.5]), console) == 1
    assert run(path, write(tmp_path / "half", crown=[0.5], unplanned=1), console) == 5
    other = write(tmp_path / "other", crown=[0.5, 0.25])
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"models": {"net": "e" * 64}}))
    assert run(path, other, console) == 4
    assert "the classifier net changed: fingerprint ffffffffffff became eeeeeeeeeeee" in said(console)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "neither"),
        ("[]", "neither"),
        ("{}", "neither"),
        ('{"certbench baseline": 2}', "format 2"),
        ('{"certbench baseline": 1, "groups": []}', "complete baseline"),
        ('{"benchmarks": [{}], "machine_info": {}}', "pytest-benchmark"),
    ],
)
def test_files_of_another_kind_are_refused(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(ConfigError, match=words):
        read(tmp_path / "b.json")


def put(place: list[Any], value: Any) -> Any:
    """An edit of a baseline: the value at a path, or its removal."""

    def edit(values: Any) -> None:
        for step in place[:-1]:
            values = values[step]
        if value is REMOVED:
            del values[place[-1]]
        else:
            values[place[-1]] = value

    return edit


REMOVED: Any = object()
FIRST: list[Any] = ["groups", 0, "rows", 0]
COUNTS = ["groups", 1, "rows", 0, 4, "counts"]


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ([*FIRST, 3], math.nan, "row 1 of crown on net, L2: nan is no number"),
        ([*FIRST, 3], "nan", "row 1 of crown on net, L2: 'nan' is no number"),
        ([*FIRST, 3], "0.5", "row 1 of crown"),
        ([*FIRST, 3], -1, "row 1 of crown on net, L2: -1 is no number"),
        ([*FIRST, 3], None, "row 1 of crown"),
        ([*FIRST, 3], math.inf, "row 1 of crown"),
        ([*FIRST, 0], "0", "row 1 of crown"),
        ([*FIRST, 2], None, "row 1 of crown"),
        (FIRST, "abcd", "row 1 of crown"),
        (FIRST, [0, 1], "row 1 of crown"),
        (FIRST, [0, 1, 1, 0.5, [1]], "row 1 of crown"),
        (FIRST, [1, 1, 1, 0.5], "has a row twice: crown on net, L2, input 1"),
        (COUNTS, ["a", "b"], "row 1 of smoothing on net, L2: its counts"),
        (COUNTS, [900, 900], "its counts are not those of n draws"),
        (COUNTS, [-1, 900], "its counts"),
        ([*COUNTS[:-1], "n"], "1000", "its counts"),
        ([*COUNTS[:-1], "n"], 10**30, "its counts"),
        (["groups", 0, "spec"], "crown", "'spec' is no object"),
        (["groups", 0, "domain"], [], "not a complete baseline"),
        (["groups", 0, "domain"], ["a", "b"], "domain"),
        (["groups", 0, "norm"], "two", "'two' is no number"),
        (["groups", 0], [], "not a complete baseline"),
        (["distances", 0, 4], "0.5", "'0.5' is no number"),
        (["distances", 0, 4], math.nan, "nan is no number"),
        (["distances", 0], [1], "not a complete baseline"),
        (["history"], REMOVED, "'history' is missing"),
        (["history"], "x", "'history' is no list"),
        (["history", 0], "x", "'date' is missing"),
        (["history", 0, "reason"], REMOVED, "'reason' is missing"),
        (["content", "models"], [], "'models' is no object"),
        (["content", "models"], {"net": 3}, "'net' is no text"),
        (["content", "versions"], ["x"], "'versions' is no object"),
        (["content", "data"], 5, "'data' is no text"),
        (["content"], REMOVED, "'content' is missing"),
    ],
)
def test_what_is_no_whole_baseline_is_refused_by_all_commands(
    place: list[Any], value: Any, words: str, tmp_path: Path, console: Console
) -> None:
    folder, path = write(tmp_path / "run", crown=[0.5, 0.25], smoothing=[0.25]), tmp_path / "b.json"
    update(folder, "first", console, path)
    values = json.loads(path.read_text())
    put(place, value)(values)
    path.write_text(json.dumps(values))
    for command in (
        lambda: run(path, folder, console),
        lambda: show(path, console),
        lambda: update(folder, "again", console, path),
    ):
        with pytest.raises(ConfigError) as error:
            command()
        assert words in str(error.value) and "b.json" in str(error.value)


def test_rows_that_a_run_has_twice_are_refused(tmp_path: Path, console: Console) -> None:
    folder = write(tmp_path / "run", crown=[0.5])
    with closing(sqlite3.connect(folder / "results.db")) as connection:
        connection.execute(f"INSERT INTO plan SELECT 9, {', '.join(PLAN)} FROM plan")
        connection.commit()
    with pytest.raises(ConfigError, match="has a row twice: crown on net, L2, input 0"):
        read(folder)


PLAN = ["key", "attack", "model", "certifier", "spec", "guarantee", "subject", "norm", "domain", "input", "label"]


def test_a_run_of_nothing_is_no_baseline(tmp_path: Path, console: Console) -> None:
    folder = write(tmp_path / "run")
    with pytest.raises(ConfigError, match="holds no rows"):
        update(folder, "first", console, tmp_path / "b.json")
    (folder / "results.db").write_bytes(b"")
    for command in (
        lambda: update(folder, "first", console, tmp_path / "b.json"),
        lambda: run(folder, folder, console),
    ):
        with pytest.raises(StoreError, match=r"results\.db is empty"):
            command()
    assert (folder / "results.db").read_bytes() == b"" and not (tmp_path / "b.json").exists()


def test_show_and_update_want_a_baseline(tmp_path: Path, console: Console) -> None:
    folder = write(tmp_path / "run", crown=[0.5])
    with pytest.raises(ConfigError, match="certbench show"):
        show(folder, console)
    with pytest.raises(ConfigError, match="is a folder"):
        update(folder, "first", console, folder)
    for content in ("[]", "3", "{}"):
        (tmp_path / "b.json").write_text(content)
        with pytest.raises(ConfigError, match="is no baseline"):
            show(tmp_path / "b.json", console)
        with pytest.raises(ConfigError, match="is no baseline"):
            update(folder, "first", console, tmp_path / "b.json")
    (tmp_path / "b.json").write_bytes(b"\0\xff")
    with pytest.raises(ConfigError, match="neither"):
        show(tmp_path / "b.json", console)


def test_an_l0_radius_at_a_counterexample_becomes_no_baseline(tmp_path: Path, console: Console) -> None:
    folder = write(tmp_path / "run", crown=[0.8], attack=0.8)
    assert update(folder, "a ball is open", console, tmp_path / "b.json") == 0
    with closing(sqlite3.connect(folder / "results.db")) as connection:
        connection.execute("UPDATE plan SET norm = 0")
        connection.commit()
    assert update(folder, "no", console, tmp_path / "b.json") == 3
    assert "certbench audit" in said(console)


def test_what_is_not_there_is_said(tmp_path: Path, console: Console) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match="folder of a run"):
            read(path)
    folder = write(tmp_path / "run", crown=[0.5])
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(StoreError, match=r"manifest\.json"):
        read(folder)
    write(folder, crown=[0.5])
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        update(folder, "first", console, tmp_path / "file" / "b.json")


def benchmarks(path: Path, *, median: float = 1.0, node: str = "here", content: str = "f", radius: float = 0.5) -> Path:
    held = {"content": content, "radii": [radius, "inf"], "upper": [0.7, "inf"]}
    entries: list[dict[str, Any]] = [
        {"fullname": "test_a", "stats": {"median": median}, "extra_info": {"certbench": held}},
        {"fullname": "test_b", "stats": {"median": 1.0}, "extra_info": {}},
    ]
    path.write_text(json.dumps({"benchmarks": entries, "machine_info": {"node": node}}))
    return path


def test_one_file_of_pytest_benchmark_gates_time_and_tightness(tmp_path: Path, console: Console) -> None:
    old = benchmarks(tmp_path / "old.json")
    cases: list[tuple[dict[str, Any], int]] = [
        ({}, 0), ({"median": 1.2}, 0), ({"median": 1.3}, 1), ({"radius": 0.4}, 1), ({"radius": 0.6}, 0),
        ({"radius": 0.8}, 3), ({"radius": 0.7}, 0), ({"node": "there"}, 4), ({"content": "e"}, 4),
    ]  # fmt: skip
    for changes, code in cases:
        assert run(old, benchmarks(tmp_path / "new.json", **changes), console) == code, changes
    assert "test_a takes 1.30 times as long" in said(console) and "here and there" in said(console)
    (tmp_path / "policy.yaml").write_text("timing: {at_most: 1.05}")
    new = benchmarks(tmp_path / "new.json", median=1.2)
    comparison = compare(old, new, policy=tmp_path / "policy.yaml")
    assert comparison.exit_code == 1 and 'failures="1"' in SHAPES["junit"](comparison)
