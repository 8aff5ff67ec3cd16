"""A package of somebody else, beside an installed wheel: the contract suite, runs, audits, comparisons and exports."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.building import DEPENDENCIES, ROOT, install, python

SOURCE = ROOT / "tests" / "third_party"
PLACED = """
import os, sys
os.environ["OMP_NUM_THREADS"] = "1"  # beside other tests, two threads wait for one another
sys.path[:0] = sys.argv.pop(1).split("|")
"""
"""Put what was installed first on the path, then the dependencies; with -S no editable install is followed."""

PYTEST = """
import certbench, intervals, pytest
code = pytest.main(["-p", "no:cacheprovider", "-p", "no:randomly", *sys.argv[1:]])
print(certbench.__file__, intervals.__file__, sep="\\n")
sys.exit(code)
"""

PIPELINE = """
import json
import numpy as np, safetensors.torch, torch
from torch import nn
from certbench import cli

torch.manual_seed(0)
module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
safetensors.torch.save_file(module.state_dict(), "plane.safetensors")
np.savez("points.npz", inputs=torch.rand(4, 6).numpy(), labels=np.arange(4) % 3)
codes = []
for command in json.loads(sys.argv[1]):
    sys.argv = ["certbench", *command]
    try:
        cli.main()
    except SystemExit as end:
        codes.append(end.code or 0)
print(json.dumps(codes))
"""

FACTORY = """
from torch import nn

def perceptron():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
"""


@pytest.fixture(scope="module")
def installed(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of this tree and the package of somebody else, and nothing of the checkout."""
    place = tmp_path_factory.mktemp("installed")
    shutil.copytree(SOURCE, place / "source", ignore=shutil.ignore_patterns("__pycache__"))
    target = place / "site"
    install(built["wheel"], target)
    install(place / "source", target)
    return target


def alone(installed: Path, program: str, *arguments: str, cwd: Path, code: int = 0) -> str:
    """Run a program for which only the installed folder and the dependencies are there."""
    folders = "|".join(map(str, (installed, *DEPENDENCIES)))
    return python("-I", "-S", "-c", PLACED + program, folders, *arguments, cwd=cwd, code=code)


def test_the_tests_of_the_other_package_pass_beside_an_installed_wheel(installed: Path) -> None:
    tests = installed.parent / "source" / "tests"
    *_, first, second = alone(installed, PYTEST, "-q", str(tests), cwd=tests.parent).splitlines()
    assert installed in Path(first).parents
    assert installed in Path(second).parents


def test_a_wrong_certifier_fails_its_suite_and_pytest_shows_what_is_wrong(installed: Path, tmp_path: Path) -> None:
    row = 'Case({"name": "wrong-sign"}, layers=frozenset({"linear", "mlp"}))'
    text = f"from certbench.testing import Case, contract_suite\nTestWrong = contract_suite({row})\n"
    (tmp_path / "test_it.py").write_text(text)
    said = alone(installed, PYTEST, "-k", "closed_form or round_trip", "test_it.py", cwd=tmp_path, code=1)
    assert "3 failed, 1 passed" in said
    assert "test_it.py::TestWrong::test_closed_form[L2-wrong-sign]" in said
    assert "law closed_form, certifier wrong-sign, L2: network linear, input " in said
    assert "The law: On a linear classifier no radius exceeds the distance to the boundary." in said


def test_runs_audits_comparisons_and_exports_treat_its_certifiers_as_ours(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "plane.py").write_text(FACTORY)
    suite: dict[str, Any] = {
        "name": "theirs",
        "data": "points.npz",
        "inputs": 4,
        "models": [{"name": "plane", "factory": "plane:perceptron", "weights": "plane.safetensors"}],
        "norms": [2],
        "certifiers": ["intervals", "wrong-sign", "lipschitz"],
        "attacks": {"steps": 0},
    }
    (tmp_path / "theirs.yaml").write_text(json.dumps(suite))
    right = {**suite, "certifiers": ["intervals", "lipschitz"]}
    (tmp_path / "right.yaml").write_text(json.dumps(right))
    commands = {
        "run theirs.yaml --out all": 0,
        "run right.yaml --out right": 0,
        "run right.yaml --out again": 0,
        "audit right --steps 20": 0,
        "audit all --steps 20": 3,
        "compare right again": 0,
        "export-certificates right --out files": 5,
    }
    told = alone(installed, PIPELINE, json.dumps([command.split() for command in commands]), cwd=tmp_path)
    *_, codes = told.splitlines()
    assert dict(zip(commands, json.loads(codes), strict=True)) == commands, told
    audit = json.loads((tmp_path / "all" / "audit.json").read_text())
    assert {part["certifier"] for part in audit["refuted"]} == {"wrong-sign"}
    bounds = json.loads((tmp_path / "right" / "audit.json").read_text())["bounds"]
    proved = {part["certifier"]: part.get("proved") for part in bounds}
    assert proved == {"intervals": 4, "lipschitz": 4}
    reason = "intervals on plane, L2: Intervals has no evidence that certbench check can verify"
    assert reason in " ".join(told.split())  # lines are wrapped
    assert len(list((tmp_path / "files").rglob("*.json"))) >= 4  # those of our own certifier are written
