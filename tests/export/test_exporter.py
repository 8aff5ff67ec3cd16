"""Certificates as files: what is exported the checker accepts, and what it could not verify is refused."""

import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from certbench import Classifier, ThreatModel, build
from certbench.checker import check, check_file
from certbench.core.options import Spec
from certbench.errors import ConfigError, UnsupportedError
from certbench.exit_codes import ExitCode
from certbench.export.exporter import export_certificates
from certbench.runs import run, suite
from tests.support.exporting import THREATS, exported, inputs, network

OWN = ["crown", "wong-kolter", "alpha-crown", "lp", "ibp", "crown-ibp", "fast-lin"]
ENGINED = ["ibp", "crown-ibp", "fast-lin", "crown"]


def agree(folder: Path, name: Spec, classifier: Classifier, threat: ThreatModel, n: int) -> int:
    count = 0
    for path, radius, stored in exported(folder, name, classifier, threat, inputs(classifier, n)):
        verdict = check_file(path)
        assert verdict.accepted, verdict.reason
        assert 0.999 * stored <= radius <= stored
        count += 1
    return count


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("kind", ["mlp", "cnn", "residual", "linear"])
def test_agrees_with_our_own_engine(tmp_path: Path, kind: str, threat: ThreatModel) -> None:
    assert agree(tmp_path, "crown", network(kind), threat, 2) == 2
    assert agree(tmp_path, "wong-kolter", network(kind), threat, 1) == 1


@pytest.mark.parametrize("kind", ["mlp", "residual"])
def test_agrees_with_optimised_slopes(tmp_path: Path, kind: str) -> None:
    assert agree(tmp_path, "alpha-crown", network(kind), THREATS[-1], 2) == 2


@pytest.mark.parametrize("threat", [THREATS[1], THREATS[-1]], ids=str)
@pytest.mark.usefixtures("solvers")
def test_agrees_with_the_linear_program(tmp_path: Path, threat: ThreatModel) -> None:
    assert sum(agree(tmp_path, "lp", network(kind), threat, 1) for kind in ("mlp", "residual")) == 2


@pytest.mark.parametrize("name", ["crown", "alpha-crown", "ibp", "crown-ibp"])
def test_piecewise_linear_functions_are_proved_as_sums_of_relus(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    leaky = nn.LeakyReLU(0.1)
    module = nn.Sequential(nn.Linear(5, 8), leaky, nn.Linear(8, 8), leaky, nn.Linear(8, 3)).eval()
    classifier = Classifier(module, (5,), 3)
    paths = list(exported(tmp_path, name, classifier, THREATS[-1], inputs(classifier, 2)))
    assert len(paths) == 2
    for path, radius, stored in paths:
        assert check_file(path).accepted
        assert 0 < radius <= stored


@pytest.mark.parametrize("engine", ["own", "auto-lirpa"])
@pytest.mark.parametrize("name", ENGINED)
@pytest.mark.usefixtures("lirpa")
def test_agrees_with_either_engine(tmp_path: Path, name: str, engine: str) -> None:
    spec = {"name": name, "engine": engine}
    assert agree(tmp_path, spec, network("mlp"), THREATS[2], 1) == 1
    assert agree(tmp_path, spec, network("mlp"), THREATS[-1], 2) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
@pytest.mark.usefixtures("solvers")
def test_agrees_on_a_thousand(tmp_path: Path, name: str) -> None:
    threats = [threat for threat in THREATS if threat.p in build(name).norms]
    kinds = ("mlp", "residual") if name == "lp" else ("mlp", "cnn", "residual")
    each = math.ceil(1000 / len(threats) / len(kinds))
    assert sum(agree(tmp_path, name, network(kind), threat, each) for kind in kinds for threat in threats) >= 1000


def test_what_cannot_be_rechecked_is_refused_with_the_reason(tmp_path: Path) -> None:
    classifier = network("mlp")
    with pytest.raises(UnsupportedError, match="DeepZ has no evidence"):
        list(exported(tmp_path, "deepz", classifier, THREATS[-1], inputs(classifier, 1)))


def test_a_certifier_with_bounds_that_are_too_tight_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from certbench.verifiers.bounds.backward import layer_bounds
    from certbench.verifiers.bounds.region import LayerBounds
    from certbench.verifiers.linear import crown

    def narrow(*args: Any, **options: Any) -> LayerBounds:
        found = layer_bounds(*args, **options)
        return LayerBounds(tuple(0.9 * low for low in found.lower), tuple(0.9 * up for up in found.upper), "crown")

    monkeypatch.setattr(crown, "layer_bounds", narrow)
    classifier = network("mlp")
    with pytest.raises(Exception, match=r"tighter bounds|does not prove|only proves radius"):
        list(exported(tmp_path, "crown", classifier, THREATS[-1], inputs(classifier, 1)))


class Silent:
    def begin(self, total: int, done: int) -> None: ...
    def now(self, text: str) -> None: ...
    def advance(self, outcomes: Any) -> None: ...
    def left(self, seconds: Any) -> None: ...
    def data(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...


SUITE = """
name: small
data: FOLDER/data.npz
inputs: 2
models: [{name: tiny, factory: "tests.support.exporting:tiny", weights: FOLDER/tiny.safetensors}]
norms: [inf]
domain: [0, 1]
certifiers: [crown, deepz]
attacks: {steps: 0}
"""


def test_a_run_is_exported_and_what_is_not_its_own_is_refused(tmp_path: Path) -> None:
    folder, into, classifier = tmp_path / "run", tmp_path / "files", network("tiny")
    safetensors.torch.save_file(classifier.module.state_dict(), tmp_path / "tiny.safetensors")
    np.savez(tmp_path / "data.npz", inputs=inputs(classifier, 2).numpy(), labels=np.array([0, 2]))
    (tmp_path / "suite.yaml").write_text(SUITE.replace("FOLDER", str(tmp_path)))
    run.run(suite.load(str(tmp_path / "suite.yaml")), folder, Silent(), executor="inline")
    found = export_certificates(folder, into)
    assert (found.exit_code, found.folder, len(found.files)) == (ExitCode.INCOMPLETE, into, 2)
    ((reason, number),) = found.refused.items()
    assert number == 2 and reason.startswith("deepz on tiny, Linf: DeepZ has no evidence")
    assert sorted(found.files) == sorted(into.glob("tiny-*.json"))
    assert check(found.files).exit_code == ExitCode.OK
    assert export_certificates(folder, into, certifier="crown", model="tiny", inputs=[1]).exit_code == ExitCode.OK
    with pytest.raises(ConfigError, match="no row"):
        export_certificates(folder, into, model="cnn-plain")

    with sqlite3.connect(folder / "results.db") as database:  # a run that claims more than it proved
        database.execute("UPDATE results SET radius = radius * 1.5")
    found = export_certificates(folder, tmp_path / "more", certifier="crown")
    assert (found.exit_code, found.files) == (ExitCode.INCOMPLETE, ())
    assert all("only proves radius" in reason for reason in found.refused)
    assert not list((tmp_path / "more").glob("tiny-*.json"))

    with sqlite3.connect(folder / "results.db") as database:
        database.execute("UPDATE results SET key = 'x' || key")
        database.execute("UPDATE plan SET key = 'x' || key")
    with pytest.raises(ConfigError, match="another version"):
        export_certificates(folder, into)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["models"]["tiny"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="is not the one of this run"):
        export_certificates(folder, into)
