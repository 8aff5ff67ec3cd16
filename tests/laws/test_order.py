"""Orders of certificates that are theorems, input by input.

With the same intermediate bounds every choice of slopes is at most the LP, the LP at most the exact answer, and that at
most any counterexample. No theorems, and not tested: IBP <= CROWN, Wong-Kolter <= CROWN, LP <= SDP without the LP's
cuts, a bound that falls with eps, a better bound from better intermediate bounds.
"""

import math

import pytest
import torch

import certbench
from certbench import L1, Linf, Outcome, ThreatModel
from certbench.attacks.battery import attack
from certbench.core.margins import margin_rows
from certbench.testing import inputs, network
from certbench.verifiers.bounds.backward import backward, layer_bounds
from certbench.verifiers.bounds.lines import upper_line
from certbench.verifiers.bounds.optimise import optimise
from certbench.verifiers.bounds.region import Region
from certbench.verifiers.bounds.state import NetworkState

pytestmark = [pytest.mark.machine, pytest.mark.usefixtures("solvers")]
BRANCHING = {"name": "branch-and-bound", "iterations": 5}
PROGRAMS = [Linf, L1, Linf.within(0, 1), L1.within(0, 1)]


@pytest.mark.parametrize("kind", ["mlp", "cnn", "residual"])
@pytest.mark.parametrize("threat", PROGRAMS, ids=str)
def test_no_choice_of_slopes_beats_the_lp_with_the_same_intermediate_bounds(kind: str, threat: ThreatModel) -> None:
    from certbench.verifiers.linear.lp import LP

    classifier, x = network(kind), inputs(4)
    state = NetworkState.of(classifier, threat)
    rows = margin_rows(classifier(x).argmax(dim=1), 4)
    eps = torch.tensor([0.02, 0.05, 0.1, 0.2], dtype=torch.float64) * (1 if threat.p == math.inf else 8)
    region = Region(threat, x.flatten(1), eps)
    bounds = layer_bounds(state.network, region)
    lp = LP().lower(state, x, rows, eps).lower.amin(dim=1)
    parallel = [upper_line(low, high)[0][:, None] for low, high in zip(bounds.lower, bounds.upper, strict=True)]
    generator = torch.Generator().manual_seed(0)
    random = [torch.rand(4, 3, low.shape[1], generator=generator, dtype=torch.float64) for low in bounds.lower]
    last, improved = len(state.network.hidden), False
    for slopes in (None, parallel, random):
        linear = backward(state.network, rows, last, bounds, slopes)
        below = region.minimum(linear.a, linear.b).amin(dim=1)
        assert (below <= lp + 1e-7).all()
        improved = improved or bool((below < lp - 1e-3).any())
    climbed = optimise(state.network, region, bounds, rows, iterations=100).lower.amin(dim=1)
    assert (climbed <= lp + 1e-7).all()
    assert (climbed >= lp - 0.02).all(), "optimised slopes should all but reach the LP, whose dual they are"
    assert improved


@pytest.mark.parametrize("kind", ["mlp", "residual"])
@pytest.mark.parametrize("threat", PROGRAMS, ids=str)
def test_relaxations_lie_below_the_exact_radius_and_that_below_attacks(kind: str, threat: ThreatModel) -> None:
    classifier, x = network(kind), inputs(2)
    complete = [certbench.certify(spec, classifier, x, threat) for spec in (BRANCHING, "milp")]
    for bracket in complete:  # where a search gave up, its bracket is wider, and holds the exact radius all the same
        done = torch.tensor([outcome is Outcome.COMPLETED for outcome in bracket.outcome])
        torch.testing.assert_close(bracket.upper[done], bracket.radius[done], rtol=1e-4, atol=1e-7)
    low, high = complete[0].radius.maximum(complete[1].radius), complete[0].upper.minimum(complete[1].upper)
    assert (low <= high * (1 + 1e-6)).all()
    for other in ("lp", "wong-kolter", "deepz", "alpha-crown"):
        assert (certbench.certify(other, classifier, x, threat).radius <= high * (1 + 1e-6)).all()
    found = attack(classifier, x, (threat,), threat.domain or (-2.0, 3.0), steps=60)[threat].distance
    assert (low <= found).all()


@pytest.mark.parametrize("threat", [Linf, Linf.within(0, 1)], ids=str)
def test_the_sdp_lies_below_the_exact_radius(threat: ThreatModel) -> None:
    classifier, x = network("mlp"), inputs(2)
    sdp = certbench.certify({"name": "sdp", "search": {"name": "secant", "relative": 0.05}}, classifier, x, threat)
    exact = certbench.certify(BRANCHING, classifier, x, threat)
    assert (sdp.radius <= exact.radius * (1 + 1e-6)).all()
    assert (sdp.radius > 0).all()
