import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from certbench import L0, L1, L2, Linf, ThreatModel
from certbench.core.ball import box, crossing, fall, farthest, size, support


def problem(seed: int, d: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, eps, and the room of a point in [0, 1], some of it on the border."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(4, 3, d, generator=g, dtype=torch.float64)
    x = (1.4 * torch.rand(4, d, generator=g, dtype=torch.float64) - 0.2).clamp(0, 1)
    eps = torch.tensor([0.01, 0.3, 0.9, 50.0], dtype=torch.float64)
    low, high = box(L2.within(0, 1), x, eps)
    return a, eps, x - low, high - x


def true_maximum(a: np.ndarray, p: float, eps: float, down: np.ndarray, up: np.ndarray) -> float:
    """Linear program for p = 1; for p = 2 bisection of the multiplier, from the feasible side."""
    if p == math.inf:
        return float(np.where(a > 0, a * up, -a * down).sum())
    d = len(a)
    if p == 1:
        bounds = [(0, u) for u in up] + [(0, v) for v in down]
        return float(-linprog(np.r_[-a, a], A_ub=np.ones((1, 2 * d)), b_ub=[eps], bounds=bounds).fun)
    low, high = 0.0, 1e6
    for _ in range(200):
        mu = (low + high) / 2
        delta = np.clip(a / max(mu, 1e-300), -down, up)
        low, high = (mu, high) if np.linalg.norm(delta) > eps else (low, mu)
    return float(a @ np.clip(a / max(high, 1e-300), -down, up))


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("seed", range(5))
def test_support_is_never_below_the_true_maximum_and_all_but_exact(p: float, seed: int) -> None:
    a, eps, down, up = problem(seed)
    bound = support(a, p, eps, down, up)
    for i in range(len(a)):
        for j in range(a.shape[1]):
            true = true_maximum(a[i, j].numpy(), p, float(eps[i]), down[i].numpy(), up[i].numpy())
            assert bound[i, j] >= true * (1 - 1e-9)
            assert bound[i, j] <= true * (1.01 if p == 2 else 1 + 1e-9) + 1e-12


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_without_a_domain_support_is_the_dual_norm(p: float) -> None:
    a, eps, _, _ = problem(0)
    room = eps[:, None].expand(-1, a.shape[-1])
    dual = torch.linalg.vector_norm(a, ord=ThreatModel(p).q, dim=-1)
    torch.testing.assert_close(support(a, p, eps, room, room), eps[:, None] * dual)


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_less_room_never_gains_more_and_none_gains_nothing(p: float) -> None:
    a, eps, down, up = problem(1)
    whole, half, none = (support(a, p, eps, share * down, share * up) for share in (1.0, 0.5, 0.0))
    assert (half <= whole * (1 + 1e-2 * (p == 2)) + 1e-12).all()
    assert (none.abs() <= 1e-12).all()
    assert (support(torch.zeros_like(a), p, eps, down, up) == 0).all()


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("domain", [None, (0.0, 1.0)])
@pytest.mark.parametrize("seed", range(3))
def test_a_function_stays_positive_up_to_its_crossing_and_falls_below_zero_soon_after(
    p: float, domain: tuple[float, float] | None, seed: int
) -> None:
    """`fall` at the crossing is what there is to lose; for p = 2 with a domain the crossing may fall a little short."""
    a, _, _, _ = problem(seed)
    threat, x = ThreatModel(p, domain), torch.rand(4, 6, generator=torch.Generator().manual_seed(seed)).double()
    centre = torch.tensor([[0.01, 0.3, -0.2], [1.0, 0.5, 0.0], [0.2, 3.0, 40.0], [0.7, 0.1, 1e-9]], dtype=torch.float64)
    reach = crossing(a, centre, threat, x)
    assert ((reach > 0) == (centre > 0)).all()
    for i in range(4):
        for j in range(3):
            if centre[i, j] <= 0:
                continue
            row, point, radius = a[i : i + 1, j : j + 1], x[i : i + 1], reach[i, j]
            if radius.isinf():
                assert domain is not None
                assert fall(row, threat, point, torch.tensor([1e3]).double()) <= centre[i, j]
                continue
            assert fall(row, threat, point, radius[None]) <= centre[i, j] * (1 + 1e-9) + 1e-15
            slack = 1.02 if p == 2 and domain is not None else 1 + 1e-6
            assert fall(row, threat, point, slack * radius[None] + 1e-12) >= centre[i, j] * (1 - 1e-9)


@pytest.mark.parametrize("scale", [1e-170, 1e-300, 1e170, 1e300])
@pytest.mark.parametrize("domain", [None, (-5.0, 5.0)])
def test_rows_whose_squares_are_no_floats_have_a_norm_too(scale: float, domain: tuple[float, float] | None) -> None:
    a, x = scale * torch.tensor([[[3.0, -4.0]]], dtype=torch.float64), torch.tensor([[0.5, 0.25]]).double()
    threat = ThreatModel(2.0, domain)
    assert fall(a, threat, x, torch.ones(1).double()).item() == pytest.approx(5 * scale, rel=1e-9)
    assert crossing(a, torch.tensor([[scale]], dtype=torch.float64), threat, x).item() == pytest.approx(0.2, rel=1e-9)


@pytest.mark.parametrize("threat", [L0, L1, L2, Linf], ids=str)
def test_the_farthest_point_of_a_domain_is_a_corner(threat: ThreatModel) -> None:
    inside = threat.within(-0.5, 1.25)
    x = 1.75 * torch.rand(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    x[0] = -0.5
    corners = torch.tensor(list(itertools.product([-0.5, 1.25], repeat=3)), dtype=torch.float64)
    for point, found in zip(x, farthest(inside, x), strict=True):
        true = torch.linalg.vector_norm(corners - point, ord=threat.p, dim=1).max()
        torch.testing.assert_close(found, true, rtol=1e-15, atol=0)
    assert farthest(threat, x).tolist() == [math.inf] * 20


@pytest.mark.parametrize("threat", [L0, L1, L2, Linf], ids=str)
def test_the_farthest_point_has_one_distance_in_any_batch(threat: ThreatModel) -> None:
    x = torch.rand(7, 1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = farthest(threat.within(0, 1), x)
    assert whole.tolist() == [farthest(threat.within(0, 1), row[None]).item() for row in x]
    assert whole.tolist() == farthest(threat.within(0, 1), x.repeat(3, 1))[7:14].tolist()


def test_the_size_of_an_input_is_its_largest_entry_and_at_least_1() -> None:
    x = torch.tensor([[0.0, 0.5], [-3.0, 2.0], [1e6, 0.0]], dtype=torch.float64)
    assert size(x).tolist() == [1.0, 3.0, 1e6]
