from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from certbench import ConfigError, ContradictionError
from certbench.external.audit_log import LogAudit, audit_log
from certbench.external.competition import Problem
from certbench.external.findings import Severity
from certbench.external.referee import WRONG, judge
from certbench.formats.vnnlib.reading import load
from certbench.formats.vnnlib.witnesses import Witness
from certbench.verifiers.complete.properties import Decision
from tests.conftest import SHARED
from tests.support.instances import benchmark, tool
from tests.support.onnx_files import write

pytest.importorskip("onnxruntime")

RIGHT = {"safe": "unsat", "near": "sat", "lossy": "timeout"}


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
            "silent": (RIGHT | {"safe": "unknown"}, {}),
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


def test_a_counterexample_of_float64_alone_accuses_nobody(tmp_path: Path) -> None:
    root = benchmark(tmp_path / "mnist")
    (root / "lossy.vnnlib").write_text((root / "lossy.vnnlib").read_text().replace("(<= Y_0 0)", "(>= Y_0 0.4)"))
    files = [
        tool(tmp_path / "one", {"lossy": "sat"}, {"lossy": "((X_0 0.5)(Y_0 0.5))"}),
        tool(tmp_path / "two", {"lossy": "unsat"}),
    ]
    found = audit_log(files, root=root, limit=20)
    assert found.exit_code == 0
    severity, message = said(found, "one")["witness"]
    assert severity is Severity.WARNING and "right in float64 alone, not in float32" in message
    assert all(
        "float64 alone, so both may be right" in said(found, name)["contradiction"][1] for name in ("one", "two")
    )


def test_a_bound_of_ours_that_a_counterexample_refutes_ends_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = benchmark(tmp_path / "mnist")
    (root / "lossy.vnnlib").write_text((root / "lossy.vnnlib").read_text().replace("(<= Y_0 0)", "(>= Y_0 0.4)"))
    monkeypatch.setattr(Problem, "decide", lambda *_: Decision("unsat", "planted"))
    with pytest.raises(ContradictionError, match="our bounds prove unsat, but one's counterexample holds in float64"):
        audit_log([tool(tmp_path / "one", {"lossy": "sat"}, {"lossy": "((X_0 0.5)(Y_0 0.5))"})], root=root, limit=20)


def test_a_counterexample_names_its_precisions_and_nan_is_none(tmp_path: Path) -> None:
    root = benchmark(tmp_path / "mnist")
    write(root / "root.onnx", [("Sub", "x,one", "a", {}), ("Sqrt", "a", "y", {})], (1, 1), {"one": np.float32([1.0])})
    wanted, witness = load(root / "near.vnnlib"), Witness({0: 0.7}, {}, tmp_path)
    assert judge(Problem(root / "net.onnx"), wanted, witness).precisions == ("float32", "float64")
    found = judge(Problem(root / "root.onnx"), wanted, witness)
    assert found.kind == WRONG and found.precisions == () and "are not finite in float32" in found.says


def test_networks_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    root = benchmark(tmp_path / "mnist")
    for folder, name in (("a", "safe"), ("b", "near")):
        (root / folder).mkdir()
        (root / folder / "n.onnx").write_bytes((root / "net.onnx").read_bytes())
        (root / folder / "p.vnnlib").write_bytes((root / f"{name}.vnnlib").read_bytes())
    (root / "instances.csv").write_text("a/n.onnx,a/p.vnnlib,20\n./b/n.onnx,b/p.vnnlib,20\n")
    path, whole = tmp_path / "one" / "results.csv", "mnist,x/{0}/n.onnx,x/{0}/p.vnnlib,1,{1},2\n"
    path.parent.mkdir()
    path.write_text(whole.format("a", "unsat") + whole.format("b", "sat"))
    (path.parent / "n_p.counterexample").write_text("((X_0 0.3))")  # right for neither, and nobody knows for which
    found = audit_log([path], root=root, limit=20)
    assert found.exit_code == 0 and "fits several instances" in said(found, "one")["witness"][1]
    assert {names[1]: one.verdict for names, one in found.proved.items()} == {"a/n.onnx": "unsat", "b/n.onnx": "sat"}
    path.write_text(whole.format("a", "sat") + whole.format("b", "unsat"))
    assert audit_log([path], root=root, limit=20).exit_code == 3
    path.write_text("mnist,n.onnx,p.vnnlib,1,unsat,2\nmnist,n.onnx,p.vnnlib,1,sat,2\nmnist,m.onnx,p.vnnlib,1,sat,2\n")
    found = audit_log([path], root=root, limit=20)
    assert found.exit_code == 0 and found.proved == {}
    assert "names fit several instances" in said(found, "one")["names"][1]
    assert "1 rows are in no instances.csv, such as m.onnx" in said(found, "one")["unlisted"][1]


def test_an_instance_that_does_not_fit_costs_itself_alone(tmp_path: Path) -> None:
    root = benchmark(tmp_path / "mnist")
    text = (root / "near.vnnlib").read_text()
    (root / "safe.vnnlib").write_text(f"{text}(declare-const Y_1 Real)")
    (root / "lossy.vnnlib").write_bytes(b"\xff\xfe")
    path = tool(tmp_path / "one", RIGHT | {"lossy": "unsat"}, {"near": "((X_0 0.7))", "safe": "((X_0 0.7))"})
    found = audit_log([path], root=root, limit=20)
    assert found.exit_code == 0 and [one.verdict for one in found.proved.values()] == ["sat"]
    texts = [finding.message for _, findings in found.findings for finding in findings if finding.check == "instance"]
    assert len(texts) == 2 and "not judged: the property has 2 outputs, the network 1" in " ".join(texts)
    assert "not judged" in texts[0] and "not judged" in texts[1]


def test_a_benchmark_of_another_name_has_to_be_named(tmp_path: Path) -> None:
    path = tool(tmp_path / "one", {"near": "sat"})
    with pytest.raises(ConfigError, match="no answer is of the category other; give the one that is meant: mnist"):
        audit_log([path], root=benchmark(tmp_path / "other"))
    with pytest.raises(ConfigError, match="root is not"):
        audit_log([path], category="mnist")
    found = audit_log([path], root=tmp_path / "other", category="mnist")
    assert [one.verdict for one in found.proved.values()] == ["sat"]


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
    assert {Path(names[2]).name: one.verdict for names, one in found.proved.items()} == {
        f"{name}.vnnlib": word for name, word in answers.items()
    }
    answers = dict.fromkeys(answers, "unsat")
    findings = [f for _, fs in audited().findings for f in fs if f.severity is Severity.REFUTED]
    assert [f.lines for f in findings] == [(2,)]
