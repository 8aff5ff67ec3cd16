"""Threats of suites: scales, features that move and domains, from the file to the stored rows and the audit."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from certbench.auditing.audit import audit
from certbench.comparison.baseline import read as read_side
from certbench.comparison.baseline import text_of
from certbench.errors import ConfigError
from certbench.models.data import Dataset
from certbench.report.tables import columns
from certbench.results.metrics import summarise
from certbench.runs.load import load as load_data
from certbench.runs.reopen import reopen
from certbench.runs.run import run
from certbench.runs.suite import Suite, load
from certbench.runs.threats import with_threats
from tests.support.runs import Watcher

SUITE = """\
name: table
data: {data}
inputs: 4
models: [{{name: net, factory: tests.runs.test_threats:factory, weights: {weights}}}]
norms: [1, 2]
certifiers: [crown, {{name: smoothing, n: 200}}]
attacks: {{steps: 5}}
"""


def factory() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A table of three features of very different sizes, the last one constant, and a network for it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=generator) * torch.tensor([1.0, 100.0, 0.0]) + torch.tensor([0.0, 50.0, 7.0])
    torch.manual_seed(0)
    module = factory()
    with torch.no_grad():
        module[0].weight.mul_(torch.tensor([1.0, 0.01, 1.0]))
    labels = module(x).argmax(dim=1)
    np.savez(tmp_path / "table.npz", inputs=x.numpy(), labels=labels.numpy())
    safetensors.torch.save_file(module.state_dict(), tmp_path / "net.safetensors")
    return SUITE.format(data=tmp_path / "table.npz", weights=tmp_path / "net.safetensors")


def read(folder: Path, text: str) -> Suite:
    path = folder / "table.yaml"
    path.write_text(text, encoding="utf-8")
    suite = load(str(path))
    return with_threats(suite, load_data(suite)[0])


def test_standard_deviations_and_ranges_are_those_of_the_whole_data_set(tmp_path: Path, table: str) -> None:
    x = np.load(tmp_path / "table.npz")["inputs"].astype(np.float64)
    threat, _ = read(tmp_path, table + "scale: std\ndomain: data\n").threats
    assert threat.scale == pytest.approx(x.std(axis=0).tolist(), rel=1e-11)
    assert threat.domain == (tuple(x.min(axis=0).tolist()), tuple(x.max(axis=0).tolist()))


def test_a_mask_of_images_has_their_axes_in_their_order(
    tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.yaml").write_text(table + "move: mask.npy\n", encoding="utf-8")
    suite = load(str(tmp_path / "table.yaml"))
    images = Dataset("images", torch.rand(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64), 2)
    mask = np.zeros((2, 2, 3))
    mask[0] = 1
    np.save("mask.npy", mask)
    with pytest.raises(ConfigError, match=r"mask.npy has shape \(2, 2, 3\), inputs \(3, 2, 2\); bring"):
        with_threats(suite, images)
    np.save("mask.npy", np.moveaxis(mask, 2, 0))
    assert with_threats(suite, images).threats[0].scale == (1, 1, 0, 0) * 3


@pytest.mark.parametrize("more", ["move: [0, 2]", "fixed: [1]", "move: mask.npy", "fixed: mask.csv"])
def test_features_that_move_are_listed_or_in_a_file(
    tmp_path: Path, table: str, more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("mask.npy", np.array([True, False, True]))
    Path("mask.csv").write_text("0\n1\n0\n")
    assert read(tmp_path, f"{table}{more}\n").threats[0].scale == (1.0, 0.0, 1.0)
    assert read(tmp_path, f"{table}{more}\nscale: [2, 3, 4]\n").threats[0].scale == (2.0, 0.0, 4.0)


@pytest.mark.parametrize(
    ("more", "line", "problem"),
    [
        ("scale: [1, 2]", 8, "3 features, but there are 2 scales"),
        ("scale: [1, -2, 3]", 8, "finite numbers >= 0"),
        ("scale: [0, 0, 0]", 8, "nothing to certify"),
        ("scale: variance", 8, "std"),
        ("scale: none.npy", 8, "there is no file none.npy"),
        ("move: [3]", 8, "no feature 3"),
        ("move: []", 8, "nothing to certify"),
        ("move: [0]\nfixed: [1]", 9, "not both"),
        ("domain: [[0, 0], [1, 1]]", 8, "has 3 features, not 2"),
        ("domain: [[0, 0, 0], [1, 1, 9]]", 8, "outside its domain"),
        ("domain: everything", 8, "a domain is"),
    ],
)
def test_what_does_not_fit_is_one_error_with_its_line(
    tmp_path: Path, table: str, more: str, line: int, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        read(tmp_path, f"{table}{more}\n")
    assert f"table.yaml, line {line}: " in str(caught.value)


@pytest.mark.machine
def test_a_run_stores_its_scales_and_is_audited_with_them(tmp_path: Path, table: str) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(table + "scale: std\ndomain: data\nmove: [0, 1]\n", encoding="utf-8")
    folder = tmp_path / "run"
    finished = run(load(str(path)), folder, Watcher())
    threat = read(tmp_path, path.read_text()).threats[0]
    assert {(row.domain, row.scale) for row in finished.rows} == {(threat.domain, threat.scale)}
    assert {row.outcome.value for row in finished.rows} <= {"completed", "abstained", "limited"}
    assert any(row.radius > 0 for row in finished.rows)
    assert not any(row.unsound for row in finished.rows)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["threat"]["scale"] == list(threat.scale or ())
    assert [column.group for column in columns(summarise(finished.rows, {}))][1] == "radius, scale units"
    assert run(load(str(path)), folder, Watcher()).computed == 0
    for entry in reopen(folder).entries:
        assert entry.threat.scale == threat.scale
    found = audit(folder, steps=5, seconds=60)
    assert found.exit_code == 0, (found.failed, found.skipped, found.recounted)
    side = read_side(folder)
    (tmp_path / "base.json").write_text("".join(text_of(side, side.known, [])))
    again = read_side(tmp_path / "base.json")
    assert [(row.domain, row.scale, row.radius) for row in again.rows] == [
        (row.domain, row.scale, row.radius) for row in side.rows
    ]

    plain = run(load(str(_without_scales(path))), folder, Watcher())
    assert plain.computed > 0
    assert {row.scale for row in plain.rows} == {None}


def _without_scales(path: Path) -> Path:
    text = path.read_text()
    path.write_text(text.replace("scale: std\n", "").replace("move: [0, 1]\n", ""))
    return path
