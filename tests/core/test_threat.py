import pytest
import torch

import certbench
from certbench import UnsupportedError
from certbench.core.threat import L0
from tests.support.grids import half


def test_l0_counts_coordinates_and_has_no_dual() -> None:
    assert (L0.name, str(L0.within(0, 1))) == ("L0", "L0 in [0, 1]")
    with pytest.raises(UnsupportedError, match="dual"):
        _ = L0.q
    with pytest.raises(UnsupportedError, match="L0 is not offered"):
        certbench.certify("crown", half(4), torch.ones(1, 4), L0)
