import itertools
import math

import pytest
import torch

from certbench import L2
from certbench.numerics.spectral import spectral
from certbench.verifiers.bounds.backward import layer_bounds
from certbench.verifiers.bounds.region import Region
from certbench.verifiers.lipschitz.masked_product import MaskedProduct, _first, spectra
from tests.support.slopes import question


def test_the_masked_product_is_at_most_the_product() -> None:
    asked = question("mlp", L2)
    *maps, last = (asked.state.network.layers[i].maps[i].matrix() for i in range(3))
    product = (asked.rows @ last).norm(dim=-1) * math.prod(float(torch.linalg.matrix_norm(w, 2)) for w in maps)
    masked = asked.slope(MaskedProduct())
    assert (masked <= product * (1 + 1e-9)).all()
    assert (masked < 0.9 * product).any()
    everywhere = layer_bounds(asked.state.network, Region(L2, asked.region.x, torch.full_like(asked.eps, 100.0)))
    assert all(bool(everywhere.unstable(i).all()) for i in range(2))
    open_ = MaskedProduct().steepness(asked.state, asked.region, asked.rows, everywhere).slope
    torch.testing.assert_close(open_, product, rtol=1e-9, atol=0)


@pytest.mark.parametrize("shape", [(4, 6, 9), (4, 9, 6), (3, 1, 5), (3, 5, 1), (2, 60, 60)])
@pytest.mark.parametrize("scale", [1.0, 1e-180, 1e180])
def test_spectral_norms_are_proved_for_each_matrix_alone(shape: tuple[int, ...], scale: float) -> None:
    matrices = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrices[1] *= 1e-3 * scale
    found, exact = spectra(matrices), torch.linalg.matrix_norm(matrices, 2)
    assert (found >= exact * (1 - 1e-15)).all()
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=0)
    assert torch.equal(spectra(matrices[1:2]), found[1:2])
    assert math.isclose(spectral(matrices), float(found.amax()), rel_tol=1e-9)


def test_spectral_norms_of_nothing_and_of_what_is_no_number() -> None:
    matrices = torch.zeros(3, 4, 4, dtype=torch.float64)
    matrices[1, 2, 3], matrices[2, 0, 1] = torch.nan, torch.inf
    found = spectra(matrices)
    assert found[0] == 0
    assert not found[1:].isfinite().any()


def test_norms_from_one_and_inf_to_two() -> None:
    matrices = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrices[1, :, 2:5] = 0
    torch.testing.assert_close(_first(matrices, 1.0), matrices.norm(dim=1).amax(dim=1), rtol=1e-12, atol=0)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6)), dtype=torch.float64)
    exact = (matrices @ signs.T).norm(dim=1).amax(dim=1)
    found = _first(matrices, math.inf)
    assert (found >= exact * (1 - 1e-12)).all()
    assert (found <= 1.3 * exact).all()
