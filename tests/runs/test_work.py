"""What comes in is checked: the classifier is a function and stays as it was, and rows agree with it."""

import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from certbench.core import registry
from certbench.runs.work import TIE
from tests.runs.executors.misbehaving import Misbehaving
from tests.support.runs import POINTS, Bench

pytestmark = pytest.mark.machine


class Random(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-6 * torch.rand(1)


class Undefined(nn.Linear):
    """NaN left of 0."""

    def __init__(self) -> None:
        super().__init__(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, :1] < 0, torch.nan, super().forward(x))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setitem(registry.table(), "misbehaving", f"{Misbehaving.__module__}:Misbehaving")
    return Bench(tmp_path)


def reason(bench: Bench, **options: Any) -> str:
    rows = bench.run({"name": "misbehaving", **options}, "lipschitz").rows
    assert {row.outcome.value for row in rows[3:]} == {"completed"}
    (found,) = {(row.outcome.value, row.radius, row.reason) for row in rows[:3]}
    assert found[:2] == ("failed", 0.0)
    return found[2]


def test_a_class_that_is_not_the_classifiers_is_refused(bench: Bench) -> None:
    assert reason(bench, label=1) == "class 1 is certified, but plane says 0"
    assert reason(bench, label=3) == "class 3 is certified, but plane has 3"


def test_equal_logits_are_no_contradiction(bench: Bench) -> None:
    bench.weights([[1.0, 0.0], [1.0, TIE / 2], [-1.0, -1.0]])
    rows = bench.run({"name": "misbehaving", "label": 1}, inputs=1).rows
    assert [row.outcome.value for row in rows] == ["completed"]


def test_an_infinite_radius_of_a_base_classifier_is_refused(bench: Bench) -> None:
    assert "infinite radius" in reason(bench, radius=math.inf)


def made(bench: Bench, name: str) -> dict[str, str]:
    """A model of this file, as a suite names it."""
    weights = bench.folder / "one.safetensors"
    safetensors.torch.save_file({"weight": torch.eye(3)[:, :2].contiguous(), "bias": torch.zeros(3)}, weights)
    return {"name": "plane", "factory": f"{__name__}:{name}", "weights": str(weights)}


def test_logits_that_are_nan_cost_their_own_row_and_are_never_certified(bench: Bench) -> None:
    model = made(bench, "Undefined")
    undefined = [bool(x[0] < 0) for x in POINTS]
    assert True in undefined and False in undefined
    rows = bench.run({"name": "smoothing", "n": 100, "noise": {"name": "gaussian", "sigma": 1e-3}}, models=[model]).rows
    assert [row.outcome.value == "completed" and row.radius > 0 for row in rows] == [not one for one in undefined]
    assert not any("second pass" in row.reason for row in rows)
    for row, nan in zip(bench.run("misbehaving", models=[model], batch=1).rows, undefined, strict=True):
        if nan:
            assert row.outcome.value == "failed" and "is certified, but plane says NaN" in row.reason


def test_what_is_no_function_has_no_certificate(bench: Bench) -> None:
    rows = bench.run({"name": "misbehaving", "radius": 1e-9}, models=[made(bench, "Random")]).rows
    assert {row.outcome.value for row in rows} == {"failed"}
    assert "other logits on a second pass" in rows[0].reason


@pytest.mark.parametrize("deed", ["halves", "hooks", "trains", "dtype", "threads", "gradients", "sys.exit", "base"])
def test_a_pair_that_changes_what_others_use_fails_alone_in_the_same_process_too(bench: Bench, deed: str) -> None:
    before = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    assert reason(bench, deed=deed)
    assert (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()) == before


def test_the_text_of_evidence_can_be_written(bench: Bench) -> None:
    rows = bench.run({"name": "misbehaving", "evidence": "surrogates"}).rows
    assert {str(row.evidence) for row in rows} == {"{'reason': 'a?b?'}"}


def test_asking_again_never_replaces_an_answer_by_none(bench: Bench) -> None:
    first = bench.run({"name": "misbehaving"}, "lipschitz").rows
    again = bench.run({"name": "misbehaving"}, "lipschitz", rerun="all", limits={"seconds": 1e-9})
    assert again.computed == 6
    assert {row.outcome.value for row in again.rows} == {"completed"}
    assert again.rows == first
