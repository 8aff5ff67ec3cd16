import numpy as np
import pytest
from scipy.special import ndtr

from certbench.verifiers.smoothing.noise import gaussian_radius


def test_the_lipschitz_constant_of_smoothed_scores_is_attained_by_a_half_space() -> None:
    sigma = 0.7
    slopes = np.diff(ndtr(np.linspace(-1, 1, 2001) / sigma)) / 0.001
    assert gaussian_radius.lipschitz_constant(sigma) == pytest.approx(slopes.max(), rel=1e-6)
    stream = np.random.default_rng(0)
    for _ in range(20):  # no other score on the line has a steeper average
        centres, heights = np.sort(stream.uniform(-2, 2, 7)), stream.uniform(0, 1, 8)
        at = lambda x: heights @ np.diff(np.concatenate([[0], ndtr((centres - x) / sigma), [1]]))  # noqa: B023, E731
        assert abs(at(0.001) - at(-0.001)) / 0.002 <= gaussian_radius.lipschitz_constant(sigma)
