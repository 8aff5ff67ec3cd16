from collections.abc import Mapping
from pathlib import Path

import pytest

from certbench.external.audit_log import LogAudit, audit_log
from certbench.external.findings import Severity
from tests.conftest import SHARED
from tests.support.instances import benchmark, tool

pytest.importorskip("onnxruntime")

RIGHT = {"safe": "unsat", "near": "sat"}


def refereed(folder: Path, tools: Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]]) -> LogAudit:
    files = [tool(folder / name, *said) for name, said in tools.items()]
    return audit_log(files, root=benchmark(folder / "mnist"), limit=20)


def said(found: LogAudit, name: str) -> dict[str, tuple[Severity, str]]:
    """Findings of a tool that are no notes, by their check."""
    return {
        finding.check: (finding.severity, finding.message)
        for path, findings in found.findings
        for finding in findings
        if path.parent.name == name and finding.severity is not Severity.NOTE
    }


def test_a_right_counterexample_and_our_bounds_prove_and_refute(tmp_path: Path) -> None:
    good = "sat\n((X_0 0.7)\n(Y_0 0.95))"
    found = refereed(
        tmp_path,
        {
            "right": (RIGHT, {"near": good}),
            "liar": ({"safe": "sat", "near": "unsat"}, {"safe": "((X_0 0.7))"}),
            "silent": ({"safe": "unknown", "near": "sat"}, {}),
        },
    )
    assert found.exit_code == 3
    assert said(found, "right") == {} and said(found, "silent") == {}
    truth = {names[2]: one.verdict for names, one in found.proved.items()}
    assert truth == {"safe.vnnlib": "unsat", "near.vnnlib": "sat"}
    findings = [f for path, found_ in found.findings for f in found_ if path.parent.name == "liar"]
    assert {(f.check, f.lines) for f in findings if f.severity is Severity.REFUTED} == {
        ("contradiction", (1,)), ("contradiction", (2,)), ("witness", (1,))
    }  # fmt: skip
    text = " ".join(f.message for f in findings)
    assert "but it is unsat: our bounds" in text and "but it is sat: right's counterexample holds" in text
    assert refereed(tmp_path / "alone", {"right": (RIGHT, {"near": good})}).exit_code == 0


def test_a_wrong_unsat_is_found_without_any_counterexample_at_hand(tmp_path: Path) -> None:
    found = refereed(tmp_path, {"liar": ({"near": "unsat"}, {})})
    severity, message = said(found, "liar")["contradiction"]
    assert severity is Severity.REFUTED and "our counterexample holds in onnxruntime and in float64" in message


@pytest.mark.parametrize(
    ("witness", "severity", "message"),
    [
        ("((X_0 0.3))", Severity.REFUTED, "is wrong: its outputs miss a condition by 0.35"),
        ("((X_0 0.8))", Severity.REFUTED, "is wrong: it leaves the box by 0.05"),
        ("((X_0 0.75001))", Severity.WARNING, "within a tolerance of 0.0001 alone: it leaves the box by 1e-05"),
        ("((X_0 0.64999))", Severity.WARNING, "tolerance of 0.0001 alone: its outputs miss a condition by 1e-05"),
        ("((X_0 0.7)(Y_0 0.5))", Severity.WARNING, "in float64; the stated outputs are off by 0.45"),
        ("((Y_0 0.5))", Severity.WARNING, "no usable counterexample: the counterexample has 0 of 1 inputs"),
        ("((X_0 0.7", Severity.WARNING, "no usable counterexample"),
    ],
)  # fmt: skip
def test_each_counterexample_is_named_for_what_it_is(
    tmp_path: Path, witness: str, severity: Severity, message: str
) -> None:
    found = refereed(tmp_path, {"one": ({"near": "sat"}, {"near": witness})})
    assert said(found, "one")["witness"][0] is severity and message in said(found, "one")["witness"][1]
    assert "contradiction" not in said(found, "one")  # the answer is right, whatever its counterexample


def test_a_counterexample_of_float32_alone_accuses_nobody(tmp_path: Path) -> None:
    found = refereed(
        tmp_path, {"one": ({"lossy": "sat"}, {"lossy": "((X_0 0.5)(Y_0 0))"}), "two": ({"lossy": "unsat"}, {})}
    )
    assert found.exit_code == 0
    severity, message = said(found, "one")["witness"]
    assert severity is Severity.WARNING and "right in float32 alone" in message
    assert all("both may be right" in said(found, name)["contradiction"][1] for name in ("one", "two"))


def test_what_is_not_known_is_said_to_be_so(tmp_path: Path) -> None:
    root = benchmark(tmp_path / "mnist")
    (root / "net.onnx").unlink()
    files = [tool(tmp_path / "one", {"safe": "sat"}), tool(tmp_path / "two", {"safe": "unsat"})]
    found = audit_log(files, root=root)
    assert found.exit_code == 3
    for name in ("one", "two"):
        assert said(found, name)["contradiction"][0] is Severity.CONTRADICTED
        assert "not known which" in said(found, name)["contradiction"][1]
        assert "no file" in said(found, name)["instance"][1]


def test_another_category_with_the_same_names_is_left_alone(tmp_path: Path) -> None:
    path = tool(tmp_path / "one", {"near": "sat"})
    path.write_text(path.read_text() + path.read_text().replace("mnist,", "cifar,").replace("sat", "unsat"))
    found = audit_log([path], root=benchmark(tmp_path / "mnist"))
    assert found.exit_code == 0 and any(f.check == "category" for _, fs in found.findings for f in fs)


def test_published_answers_of_the_competition(tmp_path: Path) -> None:
    root, known = SHARED / "networks" / "vnncomp2022" / "mnist_fc", SHARED / "results" / "vnncomp2022_mnist_fc_verdicts.csv"  # fmt: skip  # noqa: E501
    if not root.exists() or not known.exists():
        pytest.skip("the benchmark mnist_fc is not at hand")
    answers = {"prop_0_0.03": "unsat", "prop_12_0.03": "sat"}
    path = tmp_path / "winner" / "mnist_fc" / "results.csv"
    path.parent.mkdir(parents=True)

    def audited() -> LogAudit:
        rows = [f"mnist_fc,mnist-net_256x2.onnx,{name}.vnnlib,1,{word},7\n" for name, word in answers.items()]
        path.write_text("".join(rows))
        return audit_log([path], root=root, limit=60)

    found = audited()
    assert found.exit_code == 0
    assert {names[2]: one.verdict for names, one in found.proved.items()} == {
        f"{name}.vnnlib": word for name, word in answers.items()
    }
    answers = dict.fromkeys(answers, "unsat")
    findings = [f for _, fs in audited().findings for f in fs if f.severity is Severity.REFUTED]
    assert [f.lines for f in findings] == [(2,)]
