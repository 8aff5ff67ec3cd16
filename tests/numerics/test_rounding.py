import math

import torch

from certbench.numerics.rounding import lengths, product, products


def test_products_vanish_only_with_a_factor():
    assert product(0.0, math.inf) == 0
    assert product(1e-200, 1e-200) > 0
    assert products(torch.tensor([0.0, 1e-200], dtype=torch.float64), 1e-200).gt(0).tolist() == [
        False,
        True,
    ]
    assert float(lengths(torch.full((1, 2), 1e-200, dtype=torch.float64), 2.0)) > 1.4e-200
