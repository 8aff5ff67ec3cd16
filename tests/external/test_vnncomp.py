import csv
from pathlib import Path

import pytest

from certbench import ConfigError
from certbench.external import vnncomp
from certbench.external.audit_log import audit_log
from tests.conftest import SHARED
from tests.support.logs import Audit, results

KNOWN = "category,onnx,vnnlib,verdict\nmnist,net.onnx,a.vnnlib,unsat\nmnist,net.onnx.gz,b.vnnlib.gz,sat\n"


def test_tools_that_contradict_one_another(audit: Audit) -> None:
    agree = {"one/mnist/results.csv": results(a="unsat", b="violated", c="timeout", d="unknown")}
    agree["two/mnist/results.csv"] = results(a="holds", b="sat", c="unsat", d="error_exit_code_2")
    code, shown, document = audit(agree)
    assert code == 0 and "refuted" not in shown and "unsat" in shown
    counted = [{word: file[word] for word in ("source", "unsat", "sat", "unknown", "timeout", "error")} for file in document["verdicts"]]  # fmt: skip  # noqa: E501
    assert [list(file.values()) for file in counted] == [["one", 1, 1, 1, 1, 0], ["two", 2, 1, 0, 0, 1]]
    agree["three/results.csv"] = results(c="sat")
    code, shown, document = audit(agree)
    assert code == 3 and "three says sat, two unsat" in shown
    assert [len(file["findings"]) for file in document["verdicts"]] == [0, 1, 1]


def test_a_known_verdict_accuses_only_who_contradicts_it(audit: Audit) -> None:
    files = {"known.csv": KNOWN, "one/mnist/results.csv": results(a="unsat", b="sat")}
    assert audit(files)[0] == 0
    code, _, document = audit(files | {"two/mnist/results.csv": results(a="sat", b="timeout")})
    assert code == 3 and [len(file["findings"]) for file in document["verdicts"]] == [0, 0, 1]
    elsewhere = results(a="sat").replace("mnist,", "cifar,", 1)
    assert audit(files | {"two/cifar/results.csv": elsewhere})[0] == 0  # the same names in another category


def test_what_is_missing_twice_or_late(audit: Audit) -> None:
    instances = "onnx/net.onnx,vnnlib/a.vnnlib,5\nonnx/net.onnx,vnnlib/b.vnnlib,60\n"
    twice = results(a="unsat") * 2
    code, shown, document = audit({"one/mnist/results.csv": twice, "instances.csv": instances})
    assert "1 rows repeat an instance, such as onnx/net.onnx vnnlib/a.vnnlib" in " ".join(shown.split())
    assert code == 0 and [f["check"] for f in document["verdicts"][0]["findings"]] == ["duplicate", "missing", "late"]


def test_one_name_in_two_folders_is_two_instances(audit: Audit) -> None:
    def rows(**answers: str) -> str:
        return "".join(f"mnist,{folder}/n.onnx,p.vnnlib,1,{word},2\n" for folder, word in answers.items())

    files = {"one/results.csv": rows(a="unsat", b="sat"), "two/results.csv": rows(a="unsat").replace("a/n", "x/a/n")}
    code, _, document = audit(files)
    assert code == 0 and [file["findings"] for file in document["verdicts"]] == [[], []]
    assert audit(files | {"two/results.csv": rows(a="sat").replace("a/n", "x/a/n")})[0] == 3
    code, _, document = audit(files | {"known.csv": "onnx,vnnlib,verdict\nn.onnx,p.vnnlib,sat\n"})
    assert code == 0 and [f["check"] for f in document["verdicts"][2]["findings"]] == ["names"]
    code, _, document = audit({"one/results.csv": rows(a="unsat"), "two/results.csv": rows(c="sat")})
    assert code == 0 and [f["check"] for file in document["verdicts"] for f in file["findings"]] == ["folders"] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (results(a="maybe"), "r.csv:1: 'maybe' is no result"),
        (results(a="unsat") + "mnist,net.onnx,b.vnnlib,1.0,sat\n", "r.csv:2: a result is"),
        (results(a="unsat").replace("7.1", "fast"), "r.csv:1: 'fast' is not a time"),
        (KNOWN + "mnist,net.onnx\n", "r.csv:4: 2 columns"),
        ("onnx/net.onnx,a.vnnlib,5\nonnx/net.onnx,b.vnnlib\n", "r.csv:2: an instance is"),
        ("a,b\n", "r.csv:1: neither"),
    ],
)
def test_what_are_no_results_is_refused_with_its_line(content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        vnncomp.read(Path("r.csv"), content)


def test_words_of_the_competition() -> None:
    said = ["run_instance_timeout", "prepare_instance_error_1", "error_nonmaximal", "timeout((X_0 0.4))", "", "SAT"]
    file = vnncomp.read(Path("r.csv"), results(**{f"p{i}": word for i, word in enumerate(said)}))
    assert isinstance(file, vnncomp.Verdicts)
    assert [answer.verdict for answer in file.answers] == ["timeout", "error", "error", "timeout", "error", "sat"]


def test_the_competitions_winner_contradicts_no_known_verdict(tmp_path: Path) -> None:
    known = SHARED / "results" / "vnncomp2022_mnist_fc_verdicts.csv"
    if not known.exists():
        pytest.skip("the verdicts of VNN-COMP are not at hand")
    with known.open() as file:
        rows = list(csv.DictReader(file))
    lines = [[row["category"], row["onnx"], row["vnnlib"], "1", row["abcrown_result"], row["abcrown_seconds"]] for row in rows]  # fmt: skip  # noqa: E501
    path = tmp_path / "alpha_beta_crown" / "mnist_fc" / "results.csv"
    path.parent.mkdir(parents=True)

    def audited() -> int:
        path.write_text("".join(",".join(line) + "\n" for line in lines))
        return audit_log([path, known]).exit_code

    assert len(lines) == 60 and audited() == 0
    for line in lines:
        if line[4] in ("sat", "unsat"):
            was, line[4] = line[4], "sat" if line[4] == "unsat" else "unsat"
            assert audited() == 3
            line[4] = was
