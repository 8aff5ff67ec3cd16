import pytest
import torch

from certbench.attacks.walk import differs, restore
from certbench.testing import inputs, network

pytestmark = pytest.mark.machine


def test_coordinates_that_need_not_change_are_set_back() -> None:
    classifier = network("linear")
    x = inputs(5)
    exact = classifier.double()
    label = exact(x).argmax(dim=1)
    points = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 4 - 2
    wrong = differs(exact, points, label)
    back = restore(exact, x, label, points)
    assert wrong.any()
    assert torch.equal(differs(exact, back, label), wrong)
    changed = (back != x).flatten(1).sum(dim=1)
    assert (changed[wrong] < 16).any()
    assert torch.equal(back[~wrong], points[~wrong])
    assert ((back == x) | (back == points)).all()
