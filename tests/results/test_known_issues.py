import math
from pathlib import Path

import pytest

from certbench.core.claims import Guarantee, Outcome, Subject
from certbench.errors import ConfigError
from certbench.results import known_issues
from certbench.results.known_issues import KnownIssues, problem
from certbench.results.rows import Row

FILE = """
- {certifier: "lipsdp*", model: "mlp-*", kind: failed, reason: solver gives up}
- {certifier: crown, input: 3, norm: 2, kind: unsound, reason: being mended}
- {model: cnn, kind: timed out, reason: too large}
"""


def row(certifier: str, model: str = "mlp-a", index: int = 0, **more: object) -> Row:
    values: dict[str, object] = {
        "guarantee": Guarantee.SOUND, "subject": Subject.BASE, "norm": 2.0, "label": 1, "prediction": 1, "radius": 0.5,
        "outcome": Outcome.COMPLETED, "spec": {"name": certifier.partition("(")[0]},
    }  # fmt: skip
    return Row(model=model, certifier=certifier, input=index, **{**values, **more})  # type: ignore[arg-type]


@pytest.fixture
def issues(tmp_path: Path) -> KnownIssues:
    path = tmp_path / "known.yaml"
    path.write_text(FILE)
    return known_issues.load(path)


def problems(*rows: Row) -> list[tuple[Row, str]]:
    return [(one, kind) for one in rows if (kind := problem(one)) is not None]


def test_a_problem_is_known_only_where_an_entry_says_so(issues: KnownIssues) -> None:
    failed = row("lipsdp(multipliers=shared)", outcome=Outcome.FAILED)
    elsewhere = row("lipsdp", model="cnn", outcome=Outcome.FAILED)
    refuted, other = row("crown", index=3, upper=0.1), row("crown", index=4, upper=0.1)
    another_kind = row("lipsdp", upper=0.1)
    fresh, known = issues.split(problems(failed, elsewhere, refuted, other, another_kind, row("crown")))
    assert [one for one, _ in fresh] == [elsewhere, other, another_kind]
    assert [(one, entry.reason) for one, entry in known] == [(failed, "solver gives up"), (refuted, "being mended")]


def test_an_entry_is_stale_where_its_rows_are_fine_and_not_where_they_are_absent(issues: KnownIssues) -> None:
    fine, alive = row("crown", index=3), row("lipsdp", outcome=Outcome.FAILED)
    stale = issues.stale([fine, alive], problems(fine, alive))
    assert [entry.reason for entry in stale] == ["being mended"]
    assert "crown" in str(stale[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {kind: failed, reason: x}", r"line 1.*certifier, model or input"),
        ("- {model: a, kind: failed}", r"reason"),
        ("\n- {model: a, kind: failed, reason: ''}", r"line 2.*reason"),
        ("- {model: a, kind: flaky, reason: x}", r"kind.*'unsound'"),
        ("- {modell: a, kind: failed, reason: x}", r"unknown key 'modell'; did you mean 'model'"),
        ("model: a", "a list"),
        ("- [", "not valid YAML"),
        ("- {input: true, kind: failed, reason: x}", r"input.*index, not True"),
        ("- {input: [1, false], kind: failed, reason: x}", r"input.*index, not False"),
        ("- {model: a, norm: true, kind: failed, reason: x}", r"norm.*not True"),
        ("- {model: a, norm: L3x, kind: failed, reason: x}", r"norm"),
    ],
)
def test_mistakes_are_named_with_their_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "known.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"(?s)known.yaml.*{message}"):
        known_issues.load(path)


@pytest.mark.parametrize(
    ("word", "norm"), [("L1", 1.0), ("L2", 2.0), ("2", 2.0), ("Linf", math.inf), ("inf", math.inf), ("L0", 0.0)]
)
def test_norms_have_names(word: str, norm: float, tmp_path: Path) -> None:
    (tmp_path / "known.yaml").write_text(f"- {{model: mlp-a, norm: {word}, kind: failed, reason: x}}")
    (entry,) = known_issues.load(tmp_path / "known.yaml").entries
    assert entry.norm == norm


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the known issues"):
        known_issues.load(tmp_path / "none.yaml")
