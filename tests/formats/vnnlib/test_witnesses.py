from pathlib import Path

import numpy as np
import pytest

from certbench import ConfigError
from certbench.formats.vnnlib.witnesses import beside, name_of, names_of, read, text


def test_what_is_written_is_read_to_the_last_digit(tmp_path: Path) -> None:
    inputs = [float(np.float32(0.1)), -1e-30, 3.0]
    name = name_of("onnx/net.onnx.gz", "vnnlib/p_1.vnnlib")
    assert name == "net_p_1.counterexample"
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / name).write_text(text(inputs, [0.25]))
    assert beside(tmp_path) == {}  # what lies deeper may be another tool's
    found = read(beside(tmp_path / "sub")[name])
    assert [found.inputs[i] for i in range(3)] == inputs and found.outputs == {0: 0.25}


def test_no_two_instances_have_one_file() -> None:
    pairs = [("a/n.onnx", "p.vnnlib"), ("b/n.onnx", "p.vnnlib"), ("n_p.onnx", "q.vnnlib"), ("n.onnx", "p_q.vnnlib")]
    found = names_of([*pairs, ("n.onnx", "r.vnnlib")])
    assert found.pop(("n.onnx", "r.vnnlib")) == "n_r.counterexample"
    assert len(set(found.values())) == 4 and all("/" not in name and ".onnx_" in name for name in found.values())


def test_forms_of_other_tools(tmp_path: Path) -> None:
    path = tmp_path / "a.counterexample"
    path.write_text("violated\n(\n( X_0   1e-3 )\n(X_1 -.5)\n)\n")
    assert read(path).inputs == {0: 0.001, 1: -0.5}


@pytest.mark.parametrize(
    "content", ["((X_0 0.1) (X_0 0.2))", "((X_0 nan))", "((X_0 1_0))", "((X_0 a))", "((Z_0 1))", "((X_0 0.1) (X_1"]
)
def test_damaged_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.counterexample"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"a\.counterexample"):
        read(path)
