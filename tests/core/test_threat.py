import math
from typing import Any

import numpy as np
import pytest
import torch

import certbench
from certbench import ConfigError, UnsupportedError
from certbench.core.threat import L0, L2, ThreatModel
from tests.support.grids import half


def test_l0_counts_coordinates_and_has_no_dual() -> None:
    assert (L0.name, str(L0.within(0, 1))) == ("L0", "L0 in [0, 1]")
    with pytest.raises(UnsupportedError, match="dual"):
        _ = L0.q
    with pytest.raises(UnsupportedError, match="L0 is not offered"):
        certbench.certify("crown", half(4), torch.ones(1, 4), L0)


@pytest.mark.parametrize(
    ("given", "p"),
    [("L2", 2), ("l_inf", math.inf), ("Linf", math.inf), ("inf", math.inf), ("1", 1), ("L0", 0), (2, 2), (1.0, 1)],
)
def test_a_norm_has_many_names(given: Any, p: float) -> None:
    assert ThreatModel.of(given) == ThreatModel(float(p))
    assert ThreatModel.of(ThreatModel(2.0, (0.0, 1.0))) == L2.within(0, 1)


@pytest.mark.parametrize("given", ["L7", "", "two", 3, -1, math.nan, None, True, [2], object()])
def test_what_is_no_norm_is_refused_with_what_to_write(given: Any) -> None:
    with pytest.raises(ConfigError, match="write 1, 2 or inf, or 0") as caught:
        ThreatModel.of(given)
    assert caught.value.path == ("p",)


@pytest.mark.parametrize("pair", [[0, 1], (0, 1), np.array([0.0, 1.0]), torch.tensor([0.0, 1.0]), range(2)])
def test_a_domain_is_any_pair_of_numbers(pair: Any) -> None:
    assert L2.within(pair) == L2.within(0, 1) == ThreatModel(2.0, (0.0, 1.0))
    assert hash(L2.within(pair)) == hash(L2.within(0, 1))


@pytest.mark.parametrize(
    "pair", [[0], (0, 1, 2), 5, None, ((), ()), "01", ("0", "1"), ([0, 0], [1, 1, 1]), (0, math.nan), (1, 0), (0, 0)]
)
def test_what_is_no_domain_is_refused_with_what_to_write(pair: Any) -> None:
    with pytest.raises(ConfigError, match="write") as caught:
        L2.within(pair)
    assert caught.value.path == ("domain",)


def test_arrays_have_the_axes_of_an_input_in_their_order() -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
    with torch.no_grad():
        module[1].weight.copy_(torch.linspace(-1, 2, 24).view(2, 12))
    classifier = certbench.Classifier(module.eval(), (3, 2, 2), 2)
    x, mask = torch.full((1, 3, 2, 2), 0.4), np.ones((2, 2, 3))
    mask[0] = 0
    moved = np.moveaxis(mask, 2, 0)
    forms = (moved, moved[None], moved.ravel())
    radii = [float(certbench.certify("crown", classifier, x, L2.scaled(one)).radius) for one in forms]
    assert radii[0] == radii[1] == radii[2] > 0
    for threat in (L2.scaled(mask), L2.scaled(mask).within(0, 1), L2.within(mask * 0, 1)):
        with pytest.raises(ConfigError, match=r"have shape \(2, 2, 3\), inputs \(3, 2, 2\); bring their axes"):
            certbench.certify("crown", classifier, x, threat)
