"""Selections, sparse matrices, one matrix along one axis, and transposes, against torch's own layers."""

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor, nn

from certbench.networks.image_maps import Convolution, Separable
from certbench.networks.maps import Chain, Dense, Scale, Sum
from certbench.networks.structured_maps import Along, Select, Sparse, Transposed
from tests.support.linear import gauss, is_its_matrix, rounds_no_more_than_it_says


def matrix_of(apply: Callable[[Tensor], Tensor], *before: int) -> Tensor:
    """The matrix of a function on batches, from unit vectors."""
    eye = torch.eye(int(np.prod(before)), dtype=torch.float64)
    return apply(eye.reshape(-1, *before)).flatten(1).T


def selections() -> Iterator[Select]:
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        inputs, outputs = torch.randint(1, 9, (2,), generator=draw).tolist()
        yield Select(torch.randint(-1, inputs, (outputs,), generator=draw), inputs)


def test_random_selections() -> None:
    for part in selections():
        is_its_matrix(part)
        rounds_no_more_than_it_says(part)
        assert part.absolute() is part and part.roundings == 0
        assert part.transposed_roundings == max(0, int(part.matrix().sum(0).max()) - 1)


@pytest.mark.parametrize("index", [[0, 1, 2, 0, 1, 2], [2, -1, 0, 0, 2, -1], [1, 3, 3, 1, 3, 1], [3, 1, 0, 2]], ids=str)
@pytest.mark.parametrize("count", [0, 1, 5])
def test_entries_that_are_selected_equally_often_are_added_up(index: list[int], count: int) -> None:
    part, a = Select(torch.tensor(index), 4), gauss(count, len(index))
    torch.testing.assert_close(part.transpose(a), a @ part.matrix())


PLACES: dict[str, Tensor] = {
    "slice": torch.arange(24)[5:17],
    "steps": torch.arange(24)[1::3],
    "backwards": torch.arange(24).flip(0),
    "permuted": torch.arange(24).view(2, 3, 4).permute(2, 0, 1).flatten(),
    "repeated": torch.arange(24).view(2, 3, 1, 4, 1).expand(2, 3, 2, 4, 3).flatten(),
    "one": torch.tensor([7]),
    "one, repeated": torch.full((6,), 7),
    "overlapping": torch.arange(24).unfold(0, 5, 2).flatten(),
    "halves": torch.cat([torch.arange(8).view(4, 2).repeat(1, 3).flatten(), torch.arange(24)]),
    "an empty half": torch.cat([torch.full((6,), -1), torch.arange(6, 12)]),
    "halves that share entries": torch.cat([torch.arange(6).repeat(2), torch.arange(6).repeat_interleave(2)]),
    "unequal blocks": torch.tensor([0, 1, 2, 0, 1, 3]),
    "holes": torch.tensor([-1, 0, 1, -1, 2, 3]),
    "nothing": torch.full((4,), -1),
}


@pytest.mark.parametrize("kind", PLACES)
def test_places_in_any_order_are_read_and_written_as_their_index_says(kind: str) -> None:
    index = PLACES[kind]
    part = Select(index, 24)
    # Of any strides, and one with the same row for all.
    for h in (gauss(5, 24), gauss(24, 5).T, gauss(5, 48)[:, ::2], gauss(1, 24).expand(5, -1)):
        before = h.clone()
        expected = torch.where(index < 0, 0.0, before[:, index.clamp(min=0)])
        found = part.forward(h)
        assert torch.equal(found, expected)
        found += 1.0  # what is given may be written into
        assert torch.equal(h, before)
    for a in (gauss(5, len(index)), gauss(len(index), 5).T, gauss(1, len(index)).expand(5, -1)):
        expected = a.new_zeros(5, 25).index_add(1, torch.where(index < 0, 24, index), a.contiguous())[:, :24]
        torch.testing.assert_close(part.transpose(a), expected, rtol=1e-14, atol=1e-14)


def test_a_selection_of_a_selection_is_one() -> None:
    for first, second in zip(selections(), reversed(list(selections())), strict=True):
        fitting = Select(second.index.clamp(max=first.outputs - 1), first.outputs)
        assert torch.equal(fitting.after(first).matrix(), fitting.matrix() @ first.matrix())


def test_parts_of_a_concatenation_are_placed_and_added() -> None:
    first, second = torch.tensor([0, 1, -1, -1, -1]), torch.tensor([-1, -1, 0, 1, 2])
    a, b = gauss(4, 2), gauss(4, 3, seed=1)
    placed = Select(first, 2).forward(a) + Select(second, 3).forward(b)
    assert torch.equal(placed, torch.cat([a, b], dim=1))


def test_what_is_not_selected_may_be_infinite() -> None:
    part = Select(torch.tensor([1, -1]), 2)
    assert part.forward(torch.tensor([[torch.inf, 2.0]])).tolist() == [[2.0, 0.0]]
    assert part.transpose(torch.tensor([[3.0, torch.nan]])).tolist() == [[0.0, 3.0]]


def test_random_sparse_matrices() -> None:
    draw = np.random.default_rng(0)
    for _ in range(30):
        rows, columns = draw.integers(1, 12, 2)
        weight = gauss(rows, columns, seed=int(draw.integers(99))).numpy() * (draw.random((rows, columns)) < 0.3)
        part = Sparse.of(scipy.sparse.csr_matrix(weight))
        is_its_matrix(part, torch.as_tensor(weight))
        rounds_no_more_than_it_says(part)
        assert torch.equal(part.absolute().matrix(), part.matrix().abs())
        assert part.roundings == (weight != 0).sum(1).max() + 1
        assert part.transposed_roundings == (weight != 0).sum(0).max() + 1
        assert Sparse(part.weight, entry_roundings=3).roundings == part.roundings + 3


def test_gradients_pass_through_every_kind() -> None:
    draw = scipy.sparse.csr_matrix(gauss(4, 6).numpy())
    for part in (
        Sparse.of(draw),
        Select(torch.tensor([0, 0, -1, 5]), 6),
        Along(gauss(2, 2, 3)),
        Transposed(Dense(gauss(6, 4))),
    ):
        for act, size in ((part.forward, part.inputs), (part.transpose, part.outputs)):
            assert torch.autograd.gradcheck(act, gauss(2, size).requires_grad_())


def test_one_matrix_along_one_axis() -> None:
    draw = random.Random(0)
    for _ in range(40):
        blocks, outer, inner, o, i = (draw.randint(1, 3) for _ in range(5))
        weight = gauss(blocks, o, i, seed=draw.randint(0, 99))
        part = Along(weight, outer, inner)
        eye = torch.eye(outer).double(), torch.eye(inner).double()
        is_its_matrix(part, torch.block_diag(*(torch.kron(eye[0], torch.kron(block, eye[1])) for block in weight)))
        rounds_no_more_than_it_says(part)
        assert torch.equal(part.absolute().matrix(), part.matrix().abs())


def test_products_with_constants_on_either_side() -> None:
    weight, x = gauss(4, 5), gauss(2, 3, 5, seed=1)
    assert torch.allclose(Along(weight[None], outer=3).forward(x.flatten(1)), (x @ weight.T).flatten(1))
    x = gauss(2, 5, 3, seed=1)
    assert torch.allclose(Along(weight[None], inner=3).forward(x.flatten(1)), (weight @ x).flatten(1))
    weight, x = gauss(6, 4, 5), gauss(2, 6, 5, 3, seed=1)  # one matrix per head
    assert torch.allclose(Along(weight, inner=3).forward(x.flatten(1)), (weight @ x).flatten(1))
    x = gauss(2, 6, 3, 5, seed=1)
    assert torch.allclose(Along(weight, outer=3).forward(x.flatten(1)), (x @ weight.mT).flatten(1))
    x = gauss(2, 3, 4, 5)
    ones = torch.ones(1, 1, 4, dtype=torch.float64)
    assert torch.allclose(Along(ones, 3, 5).forward(x.flatten(1)), x.sum(2).flatten(1))


CONVOLVE = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}

SPREAD = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_random_convolutions_along_every_number_of_axes(axes: int) -> None:
    draw, tried = random.Random(axes), 0
    while tried < 25:
        groups, size, channels = (
            draw.choice([1, 2]),
            [draw.randint(1, 6 if axes < 3 else 4) for _ in range(axes)],
            draw.randint(1, 2),
        )
        k, s, p, d = (
            [draw.randint(least, most) for _ in range(axes)] for least, most in ((1, 3), (1, 3), (0, 2), (1, 2))
        )
        mode = draw.choice(["zeros", "circular"])
        if mode == "circular" and any(a > n for a, n in zip(p, size, strict=True)):
            continue
        layer = CONVOLVE[axes](
            groups * channels, groups * 2, k, s, p, d, groups, padding_mode=mode, bias=False
        ).double()
        layer.weight.data = gauss(*layer.weight.shape, seed=tried)
        try:
            matrix = matrix_of(layer, groups * channels, *size).detach()
            after = tuple(layer(torch.zeros(1, groups * channels, *size).double()).shape[1:])
        except RuntimeError:  # the kernel is larger than the input
            continue
        tried += 1
        kernel, before = layer.weight.detach(), (groups * channels, *size)
        options = (before, after, tuple(s), tuple(p), tuple(d), groups, mode == "circular")
        part = Convolution(kernel, *options)
        is_its_matrix(part, matrix)
        assert bool((part.absolute().matrix() >= matrix.abs()).all())
        if axes < 3 and mode == "zeros":
            rounds_no_more_than_it_says(part)
        elif part.inputs * part.outputs < 2000:
            count = Convolution(
                torch.ones_like(kernel), before, after, tuple(s), tuple(p), tuple(d), groups, mode == "circular"
            )
            assert int(count.matrix().sum(0).max()) < part.transposed_roundings


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_random_transposed_convolutions(axes: int) -> None:
    draw, tried = random.Random(axes), 0
    while tried < 25:
        groups, size, channels = (
            draw.choice([1, 2]),
            [draw.randint(1, 4 if axes < 3 else 3) for _ in range(axes)],
            draw.randint(1, 2),
        )
        k, s, p, d, more = (
            [draw.randint(least, most) for _ in range(axes)] for least, most in ((1, 3), (1, 3), (0, 2), (1, 3), (0, 2))
        )
        try:
            layer = SPREAD[axes](groups * channels, groups * 2, k, s, p, more, groups, False, d).double()
            layer.weight.data = gauss(*layer.weight.shape, seed=tried)
            matrix = matrix_of(layer, groups * channels, *size).detach()
            after = tuple(layer(torch.zeros(1, groups * channels, *size).double()).shape[1:])
        except RuntimeError:  # more output padding than torch takes, or no output
            continue
        tried += 1
        kernel, before = layer.weight.detach(), (groups * channels, *size)
        part = Transposed(Convolution(kernel, after, before, tuple(s), tuple(p), tuple(d), groups), after)
        assert part.shape == after
        is_its_matrix(part, matrix)
        if part.inputs * part.outputs < 5000:
            rounds_no_more_than_it_says(part)


def test_transposes_of_every_kind() -> None:
    pool = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]], dtype=torch.float64)
    parts = [
        Dense(gauss(3, 5)),
        Scale(gauss(4)),
        Chain((Dense(gauss(2, 6)), Dense(gauss(5, 2)))),
        Sum((Dense(gauss(3, 4)), Dense(gauss(3, 4, seed=1)))),
        Select(torch.tensor([0, 0, -1, 2, 0]), 3),
        Sparse.of(scipy.sparse.csr_matrix(gauss(3, 5).numpy())),
        Along(gauss(2, 3, 2), 2, 2),
        Separable(Scale(gauss(2)), Dense(pool), Dense(pool.flip(0))),
        Convolution(gauss(2, 2, 3, 2), (2, 4, 4), (2, 4, 2), (1, 2), (1, 0), circular=True),
    ]
    for part in parts:
        turned = Transposed(part)
        is_its_matrix(turned, part.matrix().T)
        is_its_matrix(Transposed(turned), part.matrix())
        assert Transposed(turned).roundings == part.roundings
        if not isinstance(part, Chain):  # whose moduli may be larger than those of the whole
            rounds_no_more_than_it_says(turned)


def test_large_maps_become_sparse_matrices_without_a_dense_one() -> None:
    after = (32, 64, 64)
    conv = Convolution(gauss(32, 3, 3, 3), (3, 64, 64), after, padding=(1, 1))
    h = gauss(2, conv.inputs)
    torch.testing.assert_close(torch.as_tensor(conv.sparse() @ h.numpy().T).T, conv.forward(h))
    chain = Chain((Scale(gauss(3, 64, 8)), Convolution(gauss(2, 3, 3, 3), (3, 64, 8), (2, 64, 8), padding=(1, 1))))
    h = gauss(2, chain.inputs)
    torch.testing.assert_close(torch.as_tensor(chain.sparse() @ h.numpy().T).T, chain.forward(h))
    torch.testing.assert_close(torch.as_tensor(Transposed(chain).sparse().T @ h.numpy().T).T, chain.forward(h))
