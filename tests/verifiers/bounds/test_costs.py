"""Predictions of memory and time, and what follows from them: smaller batches, or a refusal with numbers."""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from certbench import Classifier, Linf, ThreatModel, UnsupportedError, build, limits
from certbench.core import memory
from certbench.core.certification import certify
from certbench.core.certifier import Certifier
from certbench.verifiers.bounds import intervals
from certbench.verifiers.bounds.region import Region
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.linear.lirpa.graph import Lirpa
from tests.support.architectures import draw, network

KINDS: list[Any] = [
    *("ibp", "crown-ibp", "crown", "alpha-crown", "fast-lin", "wong-kolter", "deepz", "hybrid-zonotope"),
    *("fast-lip", "recurjac", "masked-product", "jacobian-zonotope", "lp", "milp", "branch-and-bound"),
    *({"name": "crown", "engine": "auto-lirpa"}, "forward", "forward-backward"),
]


def name_of(spec: Any) -> str:
    return spec if isinstance(spec, str) else "-".join(spec.values())


@pytest.mark.parametrize("spec", KINDS, ids=name_of)
def test_a_limit_that_one_input_does_not_fit_into_refuses_with_numbers(
    spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lirpa, "graph", lambda *_: pytest.fail("it started"))
    classifier, certifier = Classifier(network("mlp"), (1, 8, 8), 10), build(spec)
    numbers = "would need about .* of memory for one input, where 200 kB may be used"
    with limits(memory="200 kB"), pytest.raises(UnsupportedError, match=numbers):
        certifier.prepare(classifier, Linf)


@pytest.mark.parametrize("spec", ["crown", "crown-ibp", "wong-kolter", "deepz", "jacobian-zonotope"])
def test_batches_are_what_fits_and_bounds_stay(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, certifier, x = Classifier(network("cnn"), (1, 8, 8), 10), build(spec), draw(5, 1, 8, 8)
    state = certifier.prepare(classifier, Linf)
    whole = certify(certifier, classifier, x, Linf, state=state)
    cost, seen = certifier.cost(state), []
    assert cost is not None
    given = type(certifier).certify

    def watched(self: Certifier[Any], state: Any, part: torch.Tensor, seeds: Sequence[int]) -> Any:
        seen.append(len(part))
        return given(self, state, part, seeds)

    monkeypatch.setattr(type(certifier), "certify", watched)
    with limits(memory=cost.fixed + 2.5 * cost.each):
        parts = certify(certifier, classifier, x, Linf, state=state)
    assert seen == [2, 2, 1]
    assert parts.radius.tolist() == pytest.approx(whole.radius.tolist(), rel=1e-12)


def test_time_is_predicted_and_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = Classifier(network("mlp"), (1, 8, 8), 10)
    with limits(seconds=1e-7), pytest.raises(UnsupportedError, match="for one input, where 1e-07 s may be used"):
        build("crown").prepare(classifier, Linf)
    monkeypatch.setattr(memory, "GRACE", 0.0)
    with pytest.raises(UnsupportedError, match="a larger option `seconds`"):
        build({"name": "branch-and-bound", "seconds": 1e-7}).prepare(classifier, Linf)


def test_first_layers_are_bounded_alike_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    state = NetworkState.of(Classifier(network("cnn"), (1, 8, 8), 10), ThreatModel(2.0, (0.0, 1.0)))
    region = Region(state.threat, draw(2, 64), torch.tensor([0.1, 0.5], dtype=torch.float64))
    whole = intervals.first_layers(state.network, region)
    monkeypatch.setattr(intervals, "ROWS", 1)
    parts = intervals.first_layers(state.network, region)
    for at, ends in whole.items():
        for one, other in zip(ends, parts[at], strict=True):
            assert torch.allclose(one, other, rtol=1e-12, atol=1e-13)


PEAK = """
import ctypes, json, sys, torch
from torch import nn
from certbench import Classifier, Linf, build
from certbench.core.certification import certify
from tests.verifiers.bounds.test_costs import wide

def status(name):
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

torch.set_num_threads(1)
certifier, classifier = build(sys.argv[1]), wide()
state = certifier.prepare(classifier, Linf)
ctypes.CDLL("libc.so.6").malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")  # resets the peak
before, cost = status("VmRSS"), certifier.cost(state)
certify(certifier, classifier, torch.rand(1, 3, 32, 32), Linf, state=state)
print(json.dumps([status("VmHWM") - before, cost.fixed + cost.each]))
"""


def wide() -> Classifier:
    """A convolutional network whose zonotopes take hundreds of megabytes."""
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Conv2d(3, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 4, 2, 1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(512, 10),),
    )
    return Classifier(module.eval(), (3, 32, 32), 10)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads peaks from /proc")
@pytest.mark.parametrize("spec", ["deepz", "crown"])
def test_predictions_are_near_the_real_peak(spec: str) -> None:
    done = subprocess.run([sys.executable, "-c", PEAK, spec], capture_output=True, text=True, check=True)
    real, predicted = json.loads(done.stdout)
    assert 0.8 * real <= predicted <= 2 * max(real, 6e7)  # libraries alone may take 64 MB


def test_networks_without_hidden_layers_have_costs() -> None:
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval(), (1, 8, 8), 10)
    for name in ("best-of", "crown", "jacobian-zonotope", "deepz", "recurjac", "fast-lip", "lp", "milp", "wong-kolter"):
        certifier = build(name)
        certifier.cost(certifier.prepare(classifier, Linf))
