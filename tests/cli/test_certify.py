"""The command `certify`: from a model and data to a table of radii."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from certbench.exit_codes import ExitCode
from tests.cli.conftest import Run
from tests.support.onnx_files import write

IMAGES = """
from torch import manual_seed, nn

def net():
    manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(32, 2))
"""

MINE = ("my_plane:linear", "--weights", "plane.safetensors", "--data", "plane.npz")


def test_a_linear_network_has_its_closed_form(certbench: Run) -> None:
    """The radius of a linear network is the smallest margin over the norm of the difference of two rows."""
    code, out, _ = certbench("certify", *MINE, "--norm", "L2", "--certifier", "crown,lipschitz", "--eps", "1/10,1e6")
    assert code == 0
    file = np.load("plane.npz")
    weight = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    for i, (x, label) in enumerate(zip(file["inputs"], file["labels"], strict=True)):
        apart = [weight[label] - row for j, row in enumerate(weight) if j != label]
        radius = min(float(x @ row / np.linalg.norm(row)) for row in apart)
        row = next(line.split() for line in out.splitlines() if line.split()[:1] == [str(i)])
        assert row[:3] == [str(i), str(label), str(label)]
        assert [float(cell) for cell in row[3:]] == pytest.approx([radius] * 2, rel=1e-4)
    assert "crown: 3 of 3 certified at 0.1; 0 of 3 certified at 1e+06; mean radius" in out


@pytest.mark.parametrize(
    ("words", "scale"), [(("--threat-scale", "2,0.5"), [2, 0.5]), (("--move", "1"), [0, 1]), (("--fixed", "1"), [1, 0])]
)
def test_features_have_scales_or_do_not_move(certbench: Run, words: tuple[str, ...], scale: list[float]) -> None:
    """In Linf the margin falls by the radius times the sum of the moduli of the differences, each times its scale."""
    code, out, _ = certbench("certify", *MINE, *words, "--certifier", "crown")
    assert code == 0
    file = np.load("plane.npz")
    weight = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    for i, (x, label) in enumerate(zip(file["inputs"], file["labels"], strict=True)):
        apart = [weight[label] - row for j, row in enumerate(weight) if j != label]
        with np.errstate(divide="ignore"):
            radius = min(float(x @ row / (np.abs(row) @ scale)) for row in apart)
        row = next(line.split() for line in out.splitlines() if line.split()[:1] == [str(i)])
        assert float(row[3]) == pytest.approx(radius, rel=1e-4)


def test_files_are_certified_as_the_functions_that_made_them(certbench: Run) -> None:
    pytest.importorskip("onnxruntime")
    weight = np.array([[1.0, 0.0, -1.0], [0.0, 1.0, -1.0]], dtype=np.float32)
    write(Path("plane.onnx"), [("MatMul", "x,w", "y", {})], (1, 2), {"w": weight})
    module = nn.Linear(2, 3, bias=False).eval()
    module.weight.data = torch.from_numpy(weight.T.copy())
    torch.jit.save(torch.jit.script(module), "plane.pt")
    _, expected, _ = certbench("certify", *MINE, "--certifier", "crown")
    for file in ("plane.onnx", "plane.pt"):
        code, out, _ = certbench("certify", file, "--data", "plane.npz", "--certifier", "crown")
        assert (code, out.splitlines()[1:]) == (0, expected.splitlines()[1:])


def test_refusals_and_mistakes_are_said(certbench: Run) -> None:
    code, out, err = certbench("certify", *MINE, "--norm", "L2", "--certifier", "crown,splitting")
    assert code == ExitCode.INCOMPLETE and "crown: mean radius" in out and "splitting: " in err
    for words, message in (
        (["--eps", "two"], "'two' is text, not a number"),
        (["--eps=-0.1"], "below 0"),
        (["--eps", "inf"], "infinite"),
        (["--input-shape", "2,x"], "is no shape"),
        (["--input-shape", "3"], "plane"),
        (["--threat-scale", "1,2,3"], "2 features, but there are 3 scales"),
        (["--move", "2"], "there is no feature 2"),
        (["--move", "0", "--fixed", "1"], "not both"),
        (["--domain", "5,6"], "outside"),
        (["--domain", "1"], "no pair of numbers"),
        (["--certifier", "crwn"], "did you mean 'crown'"),
    ):
        code, _, err = certbench("certify", *MINE, *words)
        assert code == ExitCode.USAGE and message in err
    code, _, err = certbench("certify", "plane.safetensors", "--data", "plane.npz")
    assert code == ExitCode.USAGE and "it has weights alone: give module:function" in err
    code, _, err = certbench("certify", "mlp-plan", "--data", "plane.npz")
    assert code == ExitCode.USAGE and "did you mean 'mlp-plain'" in err


def test_data_are_read_as_it_is_said(certbench: Run) -> None:
    """A table with names of columns, and images whose channels are last, give the radii of the same numbers."""
    _, expected, _ = certbench("certify", *MINE, "--certifier", "crown")
    file = np.load("plane.npz")
    rows = [f"{float(a)!r},{label},{float(b)!r}" for (a, b), label in zip(file["inputs"], file["labels"], strict=True)]
    Path("plane.csv").write_text("\n".join(["left,class,right", *rows]))
    code, out, _ = certbench("certify", *MINE[:3], "--data", "plane.csv", "--labels", "class", "--certifier", "crown")
    assert code == 0 and out.splitlines()[2:] == expected.splitlines()[2:]
    assert "label: column class" in out.splitlines()[1]
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
    np.savez("last.npz", x=images, y=[0, 1])
    np.savez("first.npz", x=np.moveaxis(images, 3, 1).astype(np.float32) / np.float32(255), y=[0, 1])
    Path("my_images.py").write_text(IMAGES)
    mine = ("my_images:net", "--certifier", "crown", "--data")
    _, expected, _ = certbench("certify", *mine, "first.npz")
    code, out, _ = certbench("certify", *mine, "last.npz", "--scale", "1/255", "--layout", "NHWC")
    assert code == 0 and out.splitlines()[2:] == expected.splitlines()[2:]
    for words, message in (
        (["last.npz"], "last.npz: inputs are uint8 and no scale is said"),
        (["last.npz", "--scale", "1/255"], "write layout: NHWC, or --layout NHWC"),
        (["last.npz", "--scale", "1/255", "--layout", "NWHC"], "layout: Input should be"),
        (["lst.npz"], "there is no file lst.npz"),
        (["digits"], "my_images:net does not take a batch of shape (2, 1, 8, 8)"),
    ):
        code, _, err = certbench("certify", *mine, *words)
        assert code == ExitCode.USAGE and message in err and len(err.splitlines()) == 1


def test_labels_that_the_model_does_not_know_are_refused(certbench: Run) -> None:
    np.savez("plane.npz", inputs=np.load("plane.npz")["inputs"], labels=[1, 2, 3])
    code, _, err = certbench("certify", *MINE)
    assert code == ExitCode.USAGE and "they seem to start at 1; store labels - 1" in err
