import csv
from pathlib import Path

import pytest

from certbench import ConfigError
from certbench.core.properties import Property
from certbench.external.competition import Problem, answer, remarks, stored
from certbench.external.vnncomp import Verdicts, read
from certbench.formats.vnnlib.witnesses import beside
from certbench.formats.vnnlib.witnesses import read as witness
from certbench.verifiers.complete.properties import Decision
from tests.support.instances import benchmark

pytest.importorskip("onnxruntime")


def test_instances_are_answered_written_and_resumed(tmp_path: Path) -> None:
    root, out = benchmark(tmp_path / "mnist"), tmp_path / "out"
    first = list(answer(root, out, only="net.onnx"))
    assert [row.result for row in first] == ["unsat", "sat"] and [row.limit for row in first] == [20, 20]
    found = witness(beside(out)["net_near.counterexample"])
    assert 0.65 - 1e-6 <= found.inputs[0] <= 0.75 and found.outputs[0] >= 0.9
    every = list(answer(root, out, scale=0.5))
    assert every[:2] == first and every[2].result == "sat" and every[2].limit == 10
    with (out / "results.csv").open() as file:
        rows = list(csv.reader(file))
    assert [[*row[:3], row[4]] for row in rows] == [
        ["mnist", "net.onnx", "safe.vnnlib", "unsat"],
        ["mnist", "net.onnx", "near.vnnlib", "sat"],
        ["mnist", "lossy.onnx", "lossy.vnnlib", "sat"],
    ]
    verdicts = read(out / "results.csv", (out / "results.csv").read_text())
    assert isinstance(verdicts, Verdicts) and verdicts.count("sat") == 2
    (root / "safe.vnnlib").write_text((root / "safe.vnnlib").read_text().replace("1.1", "0.9"))
    assert [row.result for row in answer(root, out)] == ["sat", "sat", "sat"]  # another property, answered anew


def test_errors_are_rows_and_computed_again(tmp_path: Path) -> None:
    root, out = benchmark(tmp_path / "mnist"), tmp_path / "out"
    kept = (root / "net.onnx").read_bytes()
    (root / "net.onnx").unlink()
    (root / "lossy.vnnlib").write_text("(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)"
        "(assert (and (>= X_0 0) (<= X_0 1) (>= X_1 0) (<= X_1 1)))(assert (>= Y_0 0))")  # fmt: skip
    rows = list(answer(root, out))
    assert [row.result for row in rows] == ["error"] * 3
    assert "no file" in rows[0].reason and "2 inputs, the network 1" in rows[2].reason
    (root / "net.onnx").write_bytes(kept)
    assert [row.result for row in answer(root, out, only="net.onnx")] == ["unsat", "sat"]
    assert len(stored(out)) == 3
    with pytest.raises(ConfigError, match="no instance"):
        list(answer(root, out, only="nothing"))
    with pytest.raises(ConfigError, match="scale"):
        list(answer(root, out, scale=0))


def test_time_limits_are_kept(tmp_path: Path) -> None:
    rows = list(answer(benchmark(tmp_path / "mnist"), tmp_path / "out", scale=1e-9))
    assert [row.result for row in rows] == ["timeout"] * 3
    again = answer(tmp_path / "mnist", tmp_path / "out", rerun="none")
    assert all(row.result == "timeout" for row in again)  # stored
    assert next(iter(answer(tmp_path / "mnist", tmp_path / "out", scale=1e-9, rerun="open"))).result == "timeout"
    longer = list(answer(tmp_path / "mnist", tmp_path / "out", only="net.onnx"))
    assert [row.result for row in longer] == ["unsat", "sat"]
    for rerun in ("errors", "all"):  # less time takes no answer away, and leaves no counterexample
        assert list(answer(tmp_path / "mnist", tmp_path / "out", only="net.onnx", scale=1e-9, rerun=rerun)) == longer
    assert "net_near.counterexample" in beside(tmp_path / "out")


def test_counterexamples_go_with_their_answers(tmp_path: Path) -> None:
    root, out = benchmark(tmp_path / "mnist"), tmp_path / "out"
    list(answer(root, out))
    assert set(beside(out)) == {"net_near.counterexample", "lossy_lossy.counterexample"}
    (root / "near.vnnlib").write_text((root / "near.vnnlib").read_text().replace("0.9", "1.1"))
    (out / "lossy_lossy.counterexample").unlink()
    assert [row.result for row in answer(root, out)] == ["unsat", "unsat", "sat"]
    assert set(beside(out)) == {"lossy_lossy.counterexample"}  # the stale one is gone, the lost one is there again


def test_instances_of_one_name_have_a_file_each_and_strangers_are_named(tmp_path: Path) -> None:
    root, out = benchmark(tmp_path / "mnist"), tmp_path / "out"
    list(answer(root, out, only="near"))
    (root / "sub").mkdir()
    (root / "sub" / "net.onnx").write_bytes((root / "net.onnx").read_bytes())
    lines = ["sub/net.onnx,near.vnnlib,20", "./net.onnx,near.vnnlib,20", "net.onnx,near.vnnlib.gz,9"]
    (root / "instances.csv").write_text("\n".join(lines))
    assert [row.result for row in answer(root, out)] == ["sat", "sat"]
    assert set(beside(out)) == {"sub%2Fnet.onnx_near.vnnlib.counterexample", "net.onnx_near.vnnlib.counterexample"}
    assert len(remarks(root, out)) == 1 and "repeats an instance in lines 3" in remarks(root, out)[0]
    (root / "instances.csv").write_text(lines[1])
    assert [row.result for row in answer(root, out)] == ["sat"]
    assert "1 answers to instances that are not in instances.csv, such as sub/net.onnx" in remarks(root, out)[0]
    assert len((out / "results.csv").read_text().splitlines()) == 1 and len(stored(out)) == 2


def test_whatever_an_instance_raises_costs_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(problem: Problem, wanted: Property, seconds: float) -> Decision:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Problem, "decide", broken)
    rows = list(answer(benchmark(tmp_path / "mnist"), tmp_path / "out"))
    assert [row.reason for row in rows] == ["OSError: the disk is gone"] * 3
