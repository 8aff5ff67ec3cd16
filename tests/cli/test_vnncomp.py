"""The command `vnncomp`."""

from pathlib import Path

import pytest

from certbench.exit_codes import ExitCode
from tests.cli.conftest import Run
from tests.support.instances import benchmark


def test_a_benchmark_is_answered_and_its_answers_are_refereed(certbench: Run) -> None:
    pytest.importorskip("onnxruntime")
    benchmark(Path("mnist"))
    code, out, _ = certbench("vnncomp", "mnist", "--only", "net.onnx", "--out", "ours")
    assert code == ExitCode.OK and "net.onnx safe.vnnlib: unsat in" in out
    assert "1 unsat, 1 sat, 0 unknown, 0 timeout, 0 error" in out
    code, out, _ = certbench("audit-log", "ours", "--root", "mnist")
    assert code == ExitCode.OK and "2 of 2 answers are proved here" in out
    assert certbench("vnncomp", "nowhere")[0] == ExitCode.USAGE
    assert certbench("vnncomp", "mnist", "--rerun", "some")[0] == ExitCode.USAGE
