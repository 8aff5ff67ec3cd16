import pytest
import torch

from certbench import L1, L2, Linf, ThreatModel
from certbench.attacks import gradient

pytestmark = pytest.mark.machine


@pytest.mark.parametrize("threat", [L1, L2, Linf], ids=str)
def test_projections_are_the_nearest_points_of_the_ball(threat: ThreatModel) -> None:
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    eps = torch.tensor([0.0, 0.1, 0.7, 2.0, 100.0], dtype=torch.float64)
    nearest = gradient.project(change, threat, eps)
    length = torch.linalg.vector_norm(nearest.flatten(1), ord=threat.p, dim=1)
    assert (length <= eps * (1 + 1e-12)).all()
    assert torch.equal(nearest[4], change[4])
    others = torch.randn(2000, 6, generator=generator, dtype=torch.float64)
    for i in range(1, 4):
        ball = others / torch.linalg.vector_norm(others, ord=threat.p, dim=1, keepdim=True) * eps[i]
        best = (ball - change[i].flatten()).norm(dim=1).min()
        assert (nearest[i] - change[i]).norm() <= best + 1e-12
