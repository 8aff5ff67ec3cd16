"""Optimised slopes on networks whose layers do not follow one another."""

import pytest
import torch

import certbench
from certbench import Linf
from certbench.verifiers.bounds.backward import layer_bounds
from certbench.verifiers.bounds.optimise import optimised_bounds
from certbench.verifiers.bounds.region import Region
from certbench.verifiers.bounds.state import NetworkState
from certbench.verifiers.linear.crown import AlphaCrown
from tests.support.towers import SHAPES, towers

pytestmark = pytest.mark.machine


@pytest.mark.parametrize("seed", range(len(SHAPES)))
def test_layers_that_read_the_input_alone_keep_their_bounds_and_others_only_gain(seed: int) -> None:
    state = NetworkState.of(towers(SHAPES[seed], seed), Linf)
    x = torch.rand(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    region = Region(Linf, x, torch.full((3,), 0.5, dtype=torch.float64))
    crown = layer_bounds(state.network, region)
    better = optimised_bounds(state.network, region, crown, iterations=3)
    noise = torch.rand(200, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    z = state.network.preactivations((x + 0.5 * noise).flatten(0, 1))
    for i, layer in enumerate(state.network.hidden):
        assert (better.lower[i] >= crown.lower[i]).all() and (better.upper[i] <= crown.upper[i]).all()
        inside = z[i].view(200, 3, -1)
        assert (inside >= better.lower[i] - 1e-9).all() and (inside <= better.upper[i] + 1e-9).all()
        if list(layer.maps) == [0]:
            torch.testing.assert_close((better.lower[i], better.upper[i]), (crown.lower[i], crown.upper[i]))


@pytest.mark.parametrize("seed", range(len(SHAPES)))
def test_radii_with_optimised_layers_lie_between_crowns_and_the_exact_ones(seed: int) -> None:
    pytest.importorskip("highspy")
    classifier = towers(SHAPES[seed], seed)
    x = torch.rand(2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    exact = certbench.certify("milp", classifier, x, Linf)
    crown = certbench.certify("crown", classifier, x, Linf)
    found = certbench.certify(AlphaCrown(layers=5), classifier, x, Linf)
    assert (found.radius <= exact.upper * (1 + 1e-9)).all()
    assert (found.radius >= crown.radius * (1 - 2e-3)).all()
