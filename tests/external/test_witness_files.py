from pathlib import Path

from certbench.external import vnncomp
from certbench.external.witness_files import WitnessFiles, witness_files
from certbench.formats.vnnlib.witnesses import whole_name_of

PAIR = ("a/n.onnx", "p.vnnlib")
NAME = "n_p.counterexample"


def written(path: Path, *categories: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name},a/n.onnx,p.vnnlib,1,sat,2\n" for name in categories))
    return path


def found(path: Path, *others: tuple[str, str]) -> WitnessFiles:
    file = vnncomp.read(path, path.read_text())
    assert isinstance(file, vnncomp.Verdicts)
    return witness_files(file, "mnist", [PAIR, *others])


def test_a_counterexample_is_that_of_its_tool_and_category(tmp_path: Path) -> None:
    one, inner = written(tmp_path / "one" / "results.csv", "mnist"), tmp_path / "one" / "2022_mnist"
    for folder in ("one/two", "one/cifar", "two"):
        written(tmp_path / folder / "results.csv", "mnist")
        (tmp_path / folder / NAME).touch()
    assert found(one).paths == {}
    inner.mkdir()
    (inner / f"{NAME}.gz").touch()
    assert found(one).paths == {PAIR: inner / f"{NAME}.gz"}
    (tmp_path / "one" / NAME).touch()
    assert found(written(one, "mnist", "cifar")).paths == {PAIR: inner / f"{NAME}.gz"}
    (inner / f"{NAME}.gz").unlink()
    assert found(one).paths == {}  # the one beside both categories may be of either
    assert found(written(one, "mnist")).paths == {PAIR: tmp_path / "one" / NAME}


def test_a_counterexample_beside_results_of_several_tools_is_nobodys(tmp_path: Path) -> None:
    one = written(tmp_path / "one.csv", "mnist")
    written(tmp_path / "two.csv", "mnist")
    for folder in (tmp_path, tmp_path / "mnist"):
        folder.mkdir(exist_ok=True)
        (folder / NAME).touch()
        assert (
            found(one).paths == {}
            and "results of several tools; give each tool a folder, one/" in found(one).unclear[PAIR]
        )
        (folder / NAME).unlink()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / NAME).touch()
    assert found(one).paths == {PAIR: tmp_path / "one" / NAME} and found(tmp_path / "two.csv").paths == {}


def test_a_name_that_fits_two_instances_is_no_name(tmp_path: Path) -> None:
    one, other = written(tmp_path / "one" / "results.csv", "mnist"), ("b/n.onnx", "p.vnnlib")
    (tmp_path / "one" / NAME).touch()
    assert found(one, ("b/n.onnx", "q.vnnlib")).paths and not found(one, other).paths
    assert all("fits several instances" in found(one, other).unclear[pair] for pair in (PAIR, other))
    whole = tmp_path / "one" / whole_name_of(*other)
    whole.touch()
    assert found(one, other).paths == {other: whole}
