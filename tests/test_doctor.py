"""The doctor uses every part, and names a cure for what is broken."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from certbench import doctor
from certbench.doctor import Check, examine
from certbench.verifiers.linear.lirpa.graph import Lirpa


def found() -> dict[str, Check]:
    return {check.name: check for check in examine()}


@pytest.fixture(scope="module")
def healthy() -> dict[str, Check]:
    return found()


def test_everything_works_here(healthy: dict[str, Check]) -> None:
    optional = [check for check in healthy.values() if check.name == "auto-LiRPA" and not check.version]
    assert [check for check in healthy.values() if not (check.ok or check.missing)] == optional


def test_only_a_broken_part_needs_mending(healthy: dict[str, Check]) -> None:
    assert all(check.detail for check in healthy.values())
    assert all(bool(check.mend) != check.ok for check in healthy.values())


@pytest.mark.parametrize(
    ("name", "module", "cure"),
    [
        ("torch", "torch", 'pip install "torch>='),
        ("scipy", "scipy.stats", 'pip install "scipy>='),
        ("scikit-learn", "sklearn.datasets", 'pip install "scikit-learn>='),
        ("safetensors", "safetensors.torch", 'pip install "safetensors>='),
        ("foolbox", "foolbox", 'pip install "foolbox>='),
        ("onnx", "onnxruntime", 'pip install "certbench[onnx]"'),
        ("vnnlib", "vnnlib", 'pip install "certbench[vnnlib]"'),
        ("highspy", "highspy", 'pip install "certbench[solvers]"'),
        ("cvxpy", "cvxpy", 'pip install "certbench[solvers]"'),
        ("ray", "ray", 'pip install "certbench[ray]"'),
        ("auto-LiRPA", "auto_LiRPA", 'pip install "certbench[lirpa]" && pip install --no-deps auto-LiRPA==0.3'),
    ],
)
def test_a_missing_part_is_named_with_its_cure(
    name: str, module: str, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    check = found()[name]
    assert not check.ok
    assert check.detail
    assert check.mend.startswith(cure)


def test_ray_is_missing_or_broken_and_only_the_latter_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(doctor, "_version", lambda name: "")
    assert found()["ray"].missing
    assert not found()["onnx"].missing
    monkeypatch.setattr(doctor, "_version", lambda name: "2.60.0")
    assert not found()["ray"].missing


def _wrong_gradient(*args: Any) -> tuple[torch.Tensor, ...]:
    return (torch.zeros(2),)


def _wrong_attack(*args: Any, epsilons: list[float], **kwargs: Any) -> Any:
    return None, None, torch.tensor([[True], [True]])


@pytest.mark.parametrize(
    ("name", "target", "replacement"),
    [
        ("torch", "torch.autograd.grad", _wrong_gradient),
        ("scipy", "scipy.stats.beta.ppf", lambda *args: 0.99),
        ("safetensors", "safetensors.torch.load", lambda data: {"weight": torch.zeros(2, 3)}),
        ("foolbox", "foolbox.attacks.FGSM.__call__", _wrong_attack),
        ("highspy", "highspy.Highs.addRow", lambda *args: None),
        ("cvxpy", "cvxpy.Problem.solve", lambda self, solver: 3.0),
        ("certbench", "certbench.core.registry.table", dict),
    ],
)
def test_a_part_that_answers_wrongly_is_not_ok(
    name: str, target: str, replacement: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, replacement)
    assert not found()[name].ok


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_bounds_that_are_too_good_or_too_wide_are_not_ok(
    factor: float, healthy: dict[str, Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not healthy["auto-LiRPA"].version:
        pytest.skip("auto-LiRPA is not installed")
    bounds = Lirpa.lower
    monkeypatch.setattr(Lirpa, "lower", lambda self, state, x, rows, eps: bounds(self, state, x, rows, factor * eps))
    check = found()["auto-LiRPA"]
    assert not check.ok
    # Bounds that are too good are refused before anything is certified; too wide ones are sound, and not what is due.
    assert ("exceeds the margin" if factor < 1 else "not 1/4") in check.detail


def test_changed_weights_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ValueError(f"{name}: sha256 differs from the card's")

    monkeypatch.setattr("certbench.models.zoo.load", refuse)
    assert "sha256" in found()["shipped weights"].detail


def test_an_old_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    with pytest.raises(RuntimeError, match=r"3\.11"):
        doctor._python()


def test_listing_the_checks_imports_no_backend() -> None:
    code = "import certbench.doctor, sys; assert not {'torch', 'scipy', 'sklearn', 'foolbox'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
