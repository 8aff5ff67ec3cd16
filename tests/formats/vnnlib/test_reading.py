import gzip
from pathlib import Path

import pytest

from certbench import ConfigError
from certbench.formats.vnnlib.reading import instances, load
from tests.conftest import SHARED

TEXT = "(declare-const X_0 Real)(declare-const Y_0 Real)\n(assert (<= X_0 1))(assert (>= X_0 0))(assert (>= Y_0 0.5))"


def test_compressed_files_and_those_without_the_suffix_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "p.vnnlib.gz").write_bytes(gzip.compress(TEXT.encode()))
    (tmp_path / "instances.csv").write_text("net.onnx,p.vnnlib,5\n\n net.onnx , p.vnnlib.gz , 2.5\n")
    first, second = instances(tmp_path)
    assert first.property == second.property == tmp_path / "p.vnnlib.gz" and (first.limit, second.limit) == (5, 2.5)
    assert load(first.property).disjuncts[0].constants.tolist() == [-0.5]


@pytest.mark.parametrize(
    "content", ["net.onnx,p.vnnlib\n", "net.onnx,p.vnnlib,soon\n", "n.onnx,p.vnnlib,0\n", "", None]
)
def test_a_damaged_list_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "instances.csv").write_text(content)
    with pytest.raises(ConfigError, match=r"instances\.csv"):
        instances(tmp_path)


def test_comments_do_not_choose_the_version(tmp_path: Path) -> None:
    (tmp_path / "p.vnnlib").write_text("; made by a tool that also writes (vnnlib-version <2.0>)\n" + TEXT)
    assert load(tmp_path / "p.vnnlib").outputs == 1


def test_messages_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "p.vnnlib"
    path.write_text(TEXT + "\n(assert (<= Y_1 0))")
    with pytest.raises(ConfigError, match=r"p\.vnnlib:3: Y_1 is not declared"):
        load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is no text"):
        load(path)
    whole = gzip.compress(TEXT.encode())
    (tmp_path / "p.vnnlib.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="truncated"):
        load(tmp_path / "p.vnnlib.gz")
    with pytest.raises(ConfigError, match="no file"):
        load(tmp_path / "none.vnnlib")


def test_properties_of_the_competition() -> None:
    root = SHARED / "networks" / "vnncomp2022" / "mnist_fc"
    if not root.exists():
        pytest.skip("the benchmark mnist_fc is not at hand")
    found = instances(root)
    assert len(found) == 90 and found[0].limit == 120
    wanted = load(found[0].property)
    assert (wanted.inputs, wanted.outputs, len(wanted.disjuncts), len(wanted.boxes())) == (784, 10, 9, 1)
    assert all(one.rows[0, 4] == -1 and one.rows.abs().sum() == 2 for one in wanted.disjuncts)
    assert float(wanted.disjuncts[0].upper.min()) == 0.029999999329447746
