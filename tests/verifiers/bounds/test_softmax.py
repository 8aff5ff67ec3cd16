"""Planes around a softmax hold at every point of the box, and the engine takes a softmax for one function."""

import math

import pytest
import torch
from mpmath import mp
from torch import Tensor, nn

import certbench
from certbench import Classifier, Linf, MarginCertifier
from certbench.core.search import Ladder
from certbench.networks import reading
from certbench.networks.layers import RowSoftmax
from certbench.verifiers.bounds import softmax
from certbench.verifiers.linear.crown import AlphaCrown, Crown


def boxes(count: int, row: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw boxes whose places and widths differ by orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    middle = (2 * draw(count, row) - 1) * 10 ** (4 * draw(count, 1) - 3)
    half = draw(count, row) * 10 ** (8 * draw(count, 1) - 6)
    return middle - half, middle + half


@pytest.mark.parametrize("row", [1, 2, 3, 10])
def test_planes_and_constants_hold_at_corners_and_inside(row: int) -> None:
    low, high = boxes(400, row, row)
    generator = torch.Generator().manual_seed(1)
    for default in (True, False):
        choice = () if default else tuple(torch.rand(2, 400, row, generator=generator, dtype=torch.float64))
        found, (least, most) = softmax.planes(low, high, *choice), softmax.enclose(low, high)
        for draw in range(60):
            part = torch.rand(400, row, generator=generator, dtype=torch.float64)
            x = torch.lerp(low, high, part.round() if draw % 2 else part)
            value = torch.softmax(x, dim=-1)
            below = (found.lower_slope @ x[..., None]).squeeze(-1) + found.lower_offset
            above = (found.upper_slope @ x[..., None]).squeeze(-1) + found.upper_offset
            assert bool((below <= value).all()) and bool((above >= value).all())
            assert bool((least <= value).all()) and bool((most >= value).all())


def test_planes_hold_in_real_arithmetic_on_tiny_boxes() -> None:
    """Where planes nearly touch, rounding decides; sums are taken with 60 digits."""
    low, high = boxes(20, 3, 9)
    high = torch.minimum(high, low + 1e-9 * low.abs())
    found, (least, most) = softmax.planes(low, high), softmax.enclose(low, high)
    with mp.workdps(60):
        for b in range(len(low)):
            for x in (low[b], high[b], torch.stack([low[b, 0], high[b, 1], low[b, 2]])):
                powers = [mp.exp(mp.mpf(z)) for z in x.tolist()]
                for i in range(3):
                    p = powers[i] / mp.fsum(powers)
                    for slope, offset, sign in (
                        (found.lower_slope[b, i], found.lower_offset[b, i], 1),
                        (found.upper_slope[b, i], found.upper_offset[b, i], -1),
                    ):
                        pairs = zip(slope.tolist(), x.tolist(), strict=True)
                        plane = mp.fsum(mp.mpf(s) * mp.mpf(z) for s, z in pairs) + mp.mpf(float(offset))
                        assert sign * (p - plane) >= 0
                    assert mp.mpf(float(least[b, i])) <= p <= mp.mpf(float(most[b, i]))


def test_planes_touch_in_the_middle_of_a_small_box() -> None:
    middle = torch.tensor([[0.3, -1.0, 0.5]], dtype=torch.float64)
    found, value = softmax.planes(middle - 1e-4, middle + 1e-4), torch.softmax(middle, dim=-1)
    for slope, offset in ((found.lower_slope, found.lower_offset), (found.upper_slope, found.upper_offset)):
        torch.testing.assert_close((slope @ middle[..., None]).squeeze(-1) + offset, value, rtol=0, atol=1e-7)


def test_ends_that_are_infinite_or_far_give_constants_and_nan_stays() -> None:
    low = torch.tensor([[-math.inf, 0.0], [-1e4, 0.0], [math.nan, 0.0]], dtype=torch.float64)
    high = torch.tensor([[0.0, math.inf], [1e4, 1.0], [1.0, 1.0]], dtype=torch.float64)
    found = softmax.planes(low, high)
    assert bool((found.lower_slope[:2] == 0).all()) and bool((found.upper_slope[:2] == 0).all())
    assert found.lower_offset[:2].tolist() == [[0, 0], [0, 0]] and found.upper_offset[0].tolist() == [1, 1]
    assert bool(found.lower_offset[2].isnan().all()) and bool(found.upper_offset[2].isnan().all())


class Weighted(nn.Module):
    """Values weighted by a softmax of scores; both depend on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.values, self.last = nn.Linear(16, 12), nn.Linear(16, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        weights = torch.softmax(self.scores(x).view(-1, 3, 4), dim=2)
        return self.last((weights @ self.values(x)[..., None]).squeeze(-1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["ibp", "crown", "alpha-crown"])
def test_margins_behind_a_softmax_are_not_refuted_by_descent(name: str) -> None:
    torch.manual_seed(2)
    classifier = Classifier(Weighted().eval(), (1, 4, 4), 4)
    assert any(isinstance(function, RowSoftmax) for function in reading.network(classifier).activations)
    certifier = certbench.build(name)
    assert isinstance(certifier, MarginCertifier)
    x, eps = torch.randn(4, 1, 4, 4, dtype=torch.float64), torch.full((4,), 0.3, dtype=torch.float64)
    label = classifier.double()(x).argmax(dim=1)
    bound = certifier.margins(certifier.prepare(classifier, Linf), x, label, eps).lower
    module = classifier.double().module
    others = torch.stack([torch.tensor([j for j in range(4) if j != int(k)]) for k in label])
    for j in range(3):
        point = x.clone()
        for _ in range(30):
            point.requires_grad_()
            with torch.enable_grad():
                outputs = module(point)
                margin = outputs.gather(1, label[:, None])[:, 0] - outputs.gather(1, others[:, j : j + 1])[:, 0]
                (slope,) = torch.autograd.grad(margin.sum(), point)
            assert bool((margin.detach() >= bound[:, j]).all())
            point = torch.maximum(torch.minimum(point.detach() - 0.1 * slope.sign(), x + 0.3), x - 0.3)


def test_layers_without_an_open_neuron_may_follow_a_softmax() -> None:
    """The sums of attention are linear: optimised bounds of hidden layers ask for none of them."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    module = nn.Sequential(nn.Linear(5, 12), nn.Unflatten(1, (3, 4)), layer, nn.Flatten(), nn.Linear(12, 3)).eval()
    classifier, x, once = Classifier(module, (5,), 3), torch.zeros(1, 5, dtype=torch.float64), Ladder((1e-3,))
    crown, alpha = (
        float(certifier.certify(certifier.prepare(classifier, Linf), x, [0]).radius)
        for certifier in (Crown(search=once), AlphaCrown(iterations=1, layers=1, search=once))
    )
    assert alpha >= crown
