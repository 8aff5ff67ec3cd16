import math
import time

import torch
from torch import nn

from certbench.core.classifier import Regressor
from certbench.networks.reading import network
from certbench.verifiers.bounds.intervals import interval_bounds
from certbench.verifiers.complete.input_splitting import Boxes, covered


def test_the_exact_minimum_is_approached_from_below() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double().eval().requires_grad_(False)
    read = network(Regressor(module, (2,), 1))
    ends = torch.linspace(-1, 1, 501, dtype=torch.float64)
    points = torch.cartesian_prod(ends, ends)
    values = module(points).flatten()
    offered: list[torch.Tensor] = []
    rows, least = torch.ones(1, 1, dtype=torch.float64), float(values.min())

    def offer(u: torch.Tensor) -> bool:
        offered.append(u)
        return bool((module(u) < least - 0.05).any())

    assert covered(read, rows, least - 0.05, time.perf_counter() + 60, offer)
    assert all(bool((u.abs() <= 1).all()) for u in offered)
    assert not covered(
        read, rows, least + 0.01, time.perf_counter() + 60, lambda u: bool((module(u) < least + 0.01).any())
    )
    assert not covered(read, rows, least - 0.05, -math.inf, offer)


def test_boxes_with_different_sides() -> None:
    module = nn.Linear(2, 1).double().requires_grad_(False).eval()
    read = network(Regressor(module, (2,), 1))
    boxes = Boxes.of(torch.zeros(2, 2, dtype=torch.float64), torch.tensor([[1.0, 0.25], [0.5, 2.0]]).double())
    low, high = boxes[:1].box()
    assert low.tolist() == [[-1, -0.25]] and high.tolist() == [[1, 0.25]]
    a = module.weight.expand(2, 1, 2)
    wanted = -(module.weight.abs() * boxes.half).sum(dim=1)
    assert torch.allclose(boxes.minimum(a, torch.zeros(2, 1).double()).flatten(), wanted)
    assert interval_bounds(read, boxes).lower == ()
