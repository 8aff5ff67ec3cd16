"""Interval arithmetic is rounded outward, so that steep functions make no wrong bound of lost digits."""

import pytest
import torch
from torch import Tensor, nn

from certbench import Linf
from certbench.core.classifier import Classifier
from certbench.verifiers.bounds.intervals import Walk, interval_bounds
from certbench.verifiers.bounds.region import Region
from certbench.verifiers.bounds.state import NetworkState

RADII = torch.linspace(35.0, 40.0, 101, dtype=torch.float64)
"""Radii at which the exponential reaches 1e15 to 1e17, where the last digit of a double is near 1."""


class _Steep(nn.Module):
    """Computes the logarithm of a sum of exponentials less 0.5, or an exponential less 0.5, and 0."""

    def __init__(self, logarithm: bool) -> None:
        super().__init__()
        self.logarithm = logarithm

    def forward(self, x: Tensor) -> Tensor:
        y = x.exp()
        return torch.cat([(1 + y).log() - 0.5 if self.logarithm else y - 0.5, 0 * x], dim=1)


@pytest.mark.parametrize("logarithm", [True, False])
def test_ends_of_very_different_sizes_keep_the_smaller_one(logarithm: bool) -> None:
    state = NetworkState.of(Classifier(_Steep(logarithm).double().eval(), (1,), 2), Linf, relus=False)
    region = Region(Linf, torch.zeros(len(RADII), 1, dtype=torch.float64), RADII)
    walk, bounds = Walk(state.network, region), interval_bounds(state.network, region)
    for low, high in zip(bounds.lower, bounds.upper, strict=True):
        walk.done(low, high)
    last = bounds.lower[-1][:, 0]
    least = 1 + (-RADII).exp() if logarithm else -RADII  # of what the last function gets
    assert bool((last <= least * (1 + 1e-15)).all())
    assert bool((last >= least - 1e-9).all())  # and it is a tight bound
    margin = walk.end(torch.tensor([[[1.0, -1.0]]], dtype=torch.float64).expand(len(RADII), -1, -1), region)
    assert bool((margin <= -0.5 + 1e-12).all())  # at the left end it is -0.5 but for 1e-15
