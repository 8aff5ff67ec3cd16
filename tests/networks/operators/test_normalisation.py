"""A constant mask of -inf leaves entries out of a softmax, however it is written; no other infinity is read."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import certbench
from certbench import L2, Classifier, Linf, MarginCertifier
from certbench.core.margins import margin_rows
from certbench.errors import UnsupportedError
from certbench.networks.reading import read
from certbench.testing import sample_ball

N = 4
"""Number of tokens, each of four entries."""

HIDDEN = torch.ones(N, N, dtype=torch.bool).triu(1)
"""Where a token would look ahead."""

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class Attends(nn.Module):
    """Attention of the rows of an image, which a function computes from queries, keys and values."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention, self.mixed, self.last = attention, nn.Linear(4, 12), nn.Linear(16, 3)
        self.register_buffer("hidden", HIDDEN)
        self.register_buffer("added", torch.zeros(N, N).masked_fill(HIDDEN, -math.inf))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mixed(x.reshape(-1, N, 4)).split(4, dim=2)
        return self.last(self.attention(q, k, v).flatten(1))  # type: ignore[no-any-return]


class Heads(nn.Module):
    """torch's own layer, with two heads."""

    def __init__(self, weights: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weights, self.inner, self.last = weights, nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(16, 3)
        self.register_buffer("hidden", HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, N, 4)
        h = self.inner(x, x, x, attn_mask=self.hidden, need_weights=self.weights)[0]
        return self.last(h.flatten(1))  # type: ignore[no-any-return]


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    parts = [(q[:, i : i + 1] @ k[:, : i + 1].mT / 2).softmax(dim=2) @ v[:, : i + 1] for i in range(N)]
    return torch.cat(parts, dim=1)


def scores(mask: Callable[[Tensor], Tensor], dim: int = 2) -> Attention:
    return lambda q, k, v: mask(q @ k.mT / 2).softmax(dim=dim) @ v


def overwritten(z: Tensor) -> Tensor:
    z[:, HIDDEN] = -math.inf
    return z


WAYS: dict[str, Attention] = {
    "masked_fill": scores(lambda z: z.masked_fill(HIDDEN, -math.inf)),
    "where": scores(lambda z: torch.where(HIDDEN, -math.inf, z)),
    "added": scores(lambda z: z + torch.full((N, N), -math.inf).triu(1)),
    "overwritten": scores(overwritten),
    "moved, and scaled behind": lambda q, k, v: (
        ((q @ k.mT).masked_fill(HIDDEN, -math.inf).mT * 0.25 / 0.5).softmax(dim=1).mT @ v
    ),
    "causal": lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True),
    "boolean": lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, attn_mask=~HIDDEN),
}


def classifier(module: nn.Module) -> Classifier:
    return Classifier(module.double().eval(), (1, N, 4), 3)


def margins(name: str, given: Classifier, x: Tensor, label: Tensor, eps: Tensor) -> Tensor:
    certifier = certbench.build({"name": name, "engine": "own"})
    assert isinstance(certifier, MarginCertifier)
    return certifier.margins(certifier.prepare(given, Linf), x, label, eps).lower


@pytest.mark.parametrize("way", WAYS)
def test_a_masked_softmax_is_bounded_as_well_as_one_over_the_rest_however_it_is_written(way: str) -> None:
    found, expected = classifier(Attends(WAYS[way])), classifier(Attends(by_hand))
    x = torch.rand(1, 1, N, 4, generator=torch.Generator().manual_seed(0)).double().expand(3, -1, -1, -1)
    label, eps = expected(x).argmax(dim=1), torch.tensor([1e-3, 0.1, 10.0]).double()
    for name in ("ibp", "crown"):
        ours, theirs = (margins(name, given, x, label, eps) for given in (found, expected))
        assert (ours >= theirs - 1e-9).all()
        assert (ours <= theirs + 0.02 * theirs.abs()).all()


@pytest.mark.parametrize("weights", [False, True])
def test_bounds_of_masked_heads_hold_on_balls_of_all_sizes(weights: bool) -> None:
    given = classifier(Heads(weights))
    x = torch.rand(1, 1, N, 4, generator=torch.Generator().manual_seed(1)).double().expand(7, -1, -1, -1).contiguous()
    label, eps = given(x).argmax(dim=1), 10.0 ** torch.arange(-6, 7, 2).double()
    points = sample_ball(x, eps, Linf, 200)
    values = given(points.flatten(0, 1)).view(7, 200, 3) @ margin_rows(label, 3).mT
    for name in ("ibp", "crown-ibp", "crown"):
        low = margins(name, given, x, label, eps)
        assert (low[:, None] <= values + 1e-9 * values.abs()).all()


def test_a_mask_does_not_keep_the_other_certifiers_from_a_radius() -> None:
    x = torch.rand(1, 1, N, 4, generator=torch.Generator().manual_seed(0))
    for way in ("masked_fill", "causal"):
        found = certbench.certify("lipschitz", classifier(Attends(WAYS[way])), x, L2.within(0, 1))
        plain = certbench.certify("lipschitz", classifier(Attends(scores(lambda z: z))), x, L2.within(0, 1))
        assert float(found.radius[0]) > 0.5 * float(plain.radius[0]) > 0


class Masked(nn.Module):
    """A linear layer of which one class is masked, and a function of its outputs."""

    def __init__(self, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.after, self.linear = after, nn.Linear(4, 3)
        self.register_buffer("out", torch.tensor([0.0, 0.0, -math.inf]))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.linear(x.flatten(1)) + self.out)


def test_a_last_softmax_of_masked_classes_is_kept() -> None:
    given = Classifier(Masked(lambda z: z.softmax(dim=1)).double().eval(), (4,), 3)
    graph, x = read(given), torch.randn(9, 4).double()
    assert graph.head is None
    torch.testing.assert_close(graph.values(x)[-1], given(x))


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "outputs": (lambda z: z, "outputs that are -inf"),
    "logarithm": (lambda z: z.log_softmax(dim=1), "logarithm"),
    "exponential": (lambda z: z.exp(), "entries that are -inf"),
    "product": (lambda z: z * z, "entries that are -inf"),
    "negated": (lambda z: (-z).softmax(dim=1), "entries that are -inf"),
    "negated by a factor": (lambda z: (-2 * z).softmax(dim=1), "not positive"),
    "subtracted": (lambda z: z.sum(dim=1, keepdim=True) - z, "entries that are -inf"),
    "maximum": (lambda z: z.amax(dim=1, keepdim=True) + torch.zeros(3), "entries that are -inf"),
    "whole row": (lambda z: z[:, 2:].softmax(dim=1) + torch.zeros(3), "all -inf"),
    "infinity": (lambda z: (z + torch.tensor([0.0, math.inf, 0.0])).softmax(dim=1), "NaN or infinity"),
    "infinite weights": (
        lambda z: z[:, :2] @ torch.full((2, 3), -math.inf).double(),
        "a constant that is NaN or infinite",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_infinities_are_refused_with_the_reason(kind: str) -> None:
    after, reason = REFUSED[kind]
    with pytest.raises(UnsupportedError, match=reason):
        read(Classifier(Masked(after).double().eval(), (4,), 3))
