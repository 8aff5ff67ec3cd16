"""Somebody else's logs: planted defects are found, each by its own check, and a published alpha is refuted."""

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from certbench import ConfigError
from certbench.external.audit_log import audit_log, envelope, record
from certbench.external.findings import Severity
from certbench.external.output import told
from certbench.external.smoothing_logs import read
from tests.conftest import SHARED
from tests.support.logs import Audit, Row, honest, log, results, right, text
from tests.support.terminal import text_of


def test_best_of_several_is_called_a_selection(audit: Audit) -> None:
    low, high = honest(sigma=0.25), honest(sigma=0.5, seed=1)
    code, shown, document = audit({"sigma_0.25": text(low), "sigma_0.50": text(high[:-1])})
    assert code == 0 and "selected on the test set" in shown and "119, 120" in shown
    logs = [log(low), log(high[:-1])]
    for key, value in document["best"][0]["best"].items():
        assert value["percent"] == max(one.accuracy(float(key)) for one in logs)
    others = [[row[0], (row[1] + 1) % 10, *row[2:]] for row in high]
    assert not envelope([log(low), log(others)], [0.25])


def test_no_number_of_draws_gives_seven_sigma(audit: Audit) -> None:
    code, shown, _ = audit({"sigma_0.12": text(honest(sigma=0.25))})
    assert code == 3 and "no number of draws" in shown
    assert audit({"sigma_0.12": text(honest(sigma=0.25))}, sigma=0.25)[0] == 0


def test_sigma_is_inferred_where_nobody_states_it(audit: Audit) -> None:
    _, shown, document = audit({"x.tsv": text(honest(sigma=0.5, alpha=0.01))})
    assert document["logs"][0]["sigma"] == 0.5 and document["logs"][0]["explained"] == [[100_000, 0.01]]
    assert "does not state sigma; 0.5" in shown
    assert audit({"x.tsv": text(honest(sigma=0.5, alpha=0.01))}, n=100_000, alpha=0.001)[0] == 3
    odd = [[*row[:3], f"{1.1 * float(row[3]):.6f}", *row[4:]] for row in honest()]
    code, shown, document = audit({"x.tsv": text(odd)})
    assert code == 0 and "no usual sigma" in shown and document["logs"][0]["sigma"] is None


# planted defects

Spoil = Callable[[list[Row]], object]


def every(column: int, value: Callable[[int, Row], Any]) -> Spoil:
    def spoil(rows: list[Row]) -> None:
        new = [value(i, row) for i, row in enumerate(rows)]
        for row, cell in zip(rows, new, strict=True):
            row[column] = cell

    return spoil


def one(line: int, column: int, value: Any) -> Spoil:
    def spoil(rows: list[Row]) -> None:
        rows[line - 2][column] = value

    return spoil


DEFECTS: dict[str, tuple[Spoil, str, Severity, tuple[int, ...]]] = {
    "called correct though wrong": (one(4, 4, 1), "correct", Severity.REFUTED, (4,)),
    "called correct though abstained": (one(5, 4, 1), "correct", Severity.REFUTED, (5,)),
    "called wrong though correct": (one(2, 4, 0), "correct", Severity.WARNING, (2,)),
    "correct is 2": (one(2, 4, 2), "correct", Severity.REFUTED, ()),
    "correct counts up": (
        lambda rows: every(4, lambda i, row: right(rows, i))(rows),
        *("cumulative", Severity.WARNING, ()),
    ),
    "correct is a mean so far": (
        lambda rows: every(4, lambda i, row: f"{right(rows, i) / (i + 1):.4f}")(rows),
        *("cumulative", Severity.WARNING, ()),
    ),
    "time adds up": (every(5, lambda i, row: f"{14.2 * (i + 1):.1f}"), "cumulative", Severity.WARNING, ()),
    "abstained with a radius": (one(5, 3, "0.3"), "abstention", Severity.REFUTED, (5,)),
    "predicted without a radius": (one(2, 3, "0.0"), "abstention", Severity.WARNING, (2,)),
    "negative radius": (one(2, 3, "-0.1"), "radius", Severity.REFUTED, (2,)),
    "infinite radius": (one(2, 3, "inf"), "radius", Severity.REFUTED, (2,)),
    "radius is NaN": (one(2, 3, "nan"), "radius", Severity.REFUTED, (2,)),
    "radius above the top": (one(2, 3, "0.954"), "ladder", Severity.REFUTED, (2,)),
    "radius between rungs": (one(2, 3, "0.944"), "ladder", Severity.WARNING, (2,)),
    "label out of range": (
        lambda rows: (one(4, 1, 10)(rows), one(4, 2, 9)(rows)),
        *("label", Severity.WARNING, (4,)),
    ),
    "prediction out of range": (one(4, 2, -2), "prediction", Severity.WARNING, (4,)),
    "a row twice": (lambda rows: rows.insert(1, list(rows[0])), "duplicate", Severity.WARNING, (3,)),
    "index goes back": (lambda rows: rows.insert(0, rows.pop(3)), "order", Severity.WARNING, (3,)),
    "rows are missing": (lambda rows: rows.__delitem__(slice(4, 7)), "gap", Severity.WARNING, (6,)),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_is_found_by_its_own_check(defect: str, audit: Audit) -> None:
    spoil, name, severity, lines = DEFECTS[defect]
    rows = honest()
    code, shown, document = audit({"sigma_0.25": text(rows)}, n=100_000, alpha=0.001, classes=10)
    assert code == 0 and {finding["severity"] for finding in document["logs"][0]["findings"]} <= {"note"}
    spoil(rows)
    code, shown, document = audit({"sigma_0.25": text(rows)}, n=100_000, alpha=0.001, classes=10)
    assert code == (3 if severity is Severity.REFUTED else 0)
    found = [f for f in document["logs"][0]["findings"] if f["severity"] != "note"]
    assert (name, severity, list(lines)) in [(f["check"], f["severity"], f["lines"]) for f in found]
    allowed = {name, "gap"} if name == "order" else {name}
    assert {f["check"] for f in found} == allowed and f"{severity.value} " in shown


def test_a_folder_without_logs_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "stdout.txt").write_text("started\n")
    found = audit_log(tmp_path)
    assert found.exit_code == 2
    assert f"{tmp_path}: no logs in it" in text_of(told(found))


def test_radii_beyond_usual_draws_say_how_many_they_take(audit: Audit) -> None:
    rows = [[*row] for row in honest()]
    for row in rows:
        row[3] = f"{1.25 * float(row[3]):.3}"
    _, _, document = audit({"sigma_0.25": text(rows)})
    (found,) = [f for f in document["logs"][0]["findings"] if f["check"] == "ladder"]
    draws = re.search(r"takes (\d+) draws or more at alpha = 0.001", found["message"])
    assert draws is not None and int(draws[1]) > 1_000_000 and found["lines"]


def test_what_cannot_be_read_is_named_and_the_rest_is_audited(audit: Audit, tmp_path: Path) -> None:
    good, bad = text(honest()), "idx\tlabel\tpredict\n"
    code, shown, document = audit({"sigma_0.25": good, "empty": bad})
    assert code == 2 and "unreadable" in shown and "empty:1" in shown and len(document["logs"]) == 1
    assert audit({"sigma_0.12": good, "empty": bad})[0] == 3
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "stdout.txt").write_text("started\n")
    (tmp_path / "folder" / "sigma_0.25").write_text(good)
    assert audit_log(tmp_path / "folder").exit_code == 0  # what is no log is passed over in a folder
    assert audit_log(tmp_path / "folder" / "stdout.txt").exit_code == audit_log(tmp_path / "nowhere").exit_code == 2
    bad: list[dict[str, Any]] = [{"n": 0}, {"sigma": -1.0}, {"sigma": math.nan}, {"radii": [math.nan]}]
    for options in (*bad, {"radii": [0.5, math.inf]}, {"alpha": math.nan}, {"published": tmp_path / "nowhere"}):
        with pytest.raises(ConfigError):
            audit_log([tmp_path / "folder"], **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="alpha must lie between 0 and 1"):
        audit_log([tmp_path / "folder"], alpha=1.0)


# light


def test_the_command_is_light_until_there_are_radii(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text(results(a="unsat"))
    code = f"""
import sys
from pathlib import Path
from certbench import audit_log
from certbench.external.output import told
found = audit_log([Path({str(tmp_path / "one.csv")!r})])
assert found.exit_code == 0 and [*told(found)]
assert not {{"torch", "scipy", "numpy"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# published logs

ALPHA = {
    "cifar10/resnet110/noise_0.12/test/sigma_0.12": 0.001,
    "cifar10/resnet110/noise_0.12/test/sigma_0.50": None,
    "cifar10/resnet110/noise_0.25/test/sigma_0.25": 0.01,
    "cifar10/resnet110/noise_0.25/test/sigma_0.50": None,
    "cifar10/resnet110/noise_0.50/test/sigma_0.50": 0.01,
    "cifar10/resnet110/noise_1.00/test/sigma_0.50": 0.001,
    "cifar10/resnet110/noise_1.00/test/sigma_1.00": None,
    "imagenet/resnet50/noise_0.25/test/sigma_0.25": 0.01,
    "imagenet/resnet50/noise_0.25/test/sigma_0.50": 0.01,
    "imagenet/resnet50/noise_0.50/test/sigma_0.50": 0.01,
    "imagenet/resnet50/noise_0.50/train/sigma_0.50": 0.01,
    "imagenet/resnet50/noise_1.00/test/sigma_0.50": 0.01,
    "imagenet/resnet50/noise_1.00/test/sigma_1.00": 0.01,
}
"""What the released logs of Cohen et al. were made with, None where no input is near the top; the paper says 0.001."""


def test_the_papers_alpha_is_refuted_where_another_was_used(cohen: Path) -> None:
    audited = audit_log(cohen, published=SHARED / "published.csv")
    code, document = audited.exit_code, record(audited)
    found = {str(Path(one["file"]).relative_to(cohen)): one for one in document["logs"]}
    assert found.keys() == ALPHA.keys()
    for name, alpha in ALPHA.items():
        explained, findings = found[name]["explained"], found[name]["findings"]
        if alpha is None:
            assert len({level for _, level in explained}) > 1, name
        else:
            assert explained == [[100_000, alpha]], name
        wanted = ["refuted"] if found[name]["cells"] and alpha == 0.01 else []
        if name.endswith("noise_1.00/test/sigma_1.00") and alpha is None:
            wanted = ["warning"]  # five radii are no rungs of what the paper states; what else they are stays open
        assert [f["severity"] for f in findings if f["check"] == "ladder"] == wanted, name
        assert all(f["check"] == "ladder" or f["severity"] == "note" for f in findings), name
        assert all(abs(cell["published"] - cell["recomputed"]) < 0.051 for cell in found[name]["cells"])
    assert code == 3 and sum(len(one["cells"]) for one in found.values()) == 45
    at_top = found["cifar10/resnet110/noise_0.25/test/sigma_0.25"]
    assert at_top["ACR"] == pytest.approx(0.4289, abs=5e-5)
    assert printed_rows(cohen / "cifar10/resnet110/noise_0.25/test/sigma_0.25") == [65, 12, 4]


def printed_rows(path: Path) -> list[int]:
    return [r.rows for r in read(path, path.read_text()).radii[:3]]
