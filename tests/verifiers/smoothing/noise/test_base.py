import math

import numpy as np
import torch
from scipy import stats

from certbench.verifiers.smoothing.noise.base import exponential, integers, normal, symmetric
from certbench.verifiers.smoothing.noise.families import Gaussian, Laplace, Uniform
from tests.support.devices import CPU, devices, generator


@devices
def test_draws_on_a_device_have_the_laws_they_are_named_after(device: torch.device) -> None:
    stream, n = generator(device), 300_000
    laws = [
        (normal(stream, n, 1), stats.norm()),
        (exponential(stream, n, 1), stats.expon()),
        (symmetric(stream, n, 1), stats.uniform(-1, 2)),
        (Gaussian(0.3).draw(stream, n, 1), stats.norm(scale=0.3)),
        (Laplace(0.3).draw(stream, n, 1), stats.laplace(scale=0.3 / math.sqrt(2))),
        (Uniform(0.3).draw(stream, n, 1), stats.uniform(-0.3 * math.sqrt(3), 0.6 * math.sqrt(3))),
    ]
    for drawn, law in laws:
        assert drawn.device.type == device.type and drawn.dtype == torch.float32
        assert stats.kstest(drawn[:, 0].cpu().numpy().astype(np.float64), law.cdf).pvalue > 1e-4


@devices
def test_normal_draws_pass_where_torchs_float32_ones_end(device: torch.device) -> None:
    """4e-7 of the draws lie beyond 5.07, where we look; 5.77 itself is passed once in 1.2e8 draws."""
    beyond = sum(int((normal(generator(device, seed), 2_000_000, 1).abs() > 5.07).sum()) for seed in range(4))
    assert stats.binomtest(beyond, 8_000_000, 2 * float(stats.norm.sf(5.07))).pvalue > 1e-4


def test_whole_numbers_have_every_bit() -> None:
    drawn = integers(generator(CPU), 2**63, 4000)
    assert (drawn >= 0).all()
    for bit in range(63):
        assert abs(int((drawn >> bit & 1).sum()) - 2000) < 5 * math.sqrt(1000)
