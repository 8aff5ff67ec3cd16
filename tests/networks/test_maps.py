"""The family of linear maps: whatever its kind, a map is one matrix."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from certbench.networks.image_maps import Convolution, Separable
from certbench.networks.maps import Chain, Dense, Map, Scale, Sum


def gauss(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def maps() -> dict[str, Map]:
    kernel, pool = gauss(4, 2, 3, 2), torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]], dtype=torch.float64)
    return {
        "dense": Dense(gauss(3, 5), features=(3, 1)),
        "scale": Scale(gauss(2, 3, 1)),
        "zeros": Convolution(kernel, (4, 5, 5), (4, 5, 6), padding=(1, 1), groups=2),
        "more behind": Convolution(kernel, (2, 6, 6), (4, 3, 6), (2, 1)),
        "left over": Convolution(kernel, (2, 8, 7), (4, 2, 3), (3, 2), (0, 1), (1, 2)),
        "circular": Convolution(kernel, (2, 6, 4), (4, 3, 4), (2, 1), (2, 0), circular=True),
        "separable": Separable(Scale(gauss(2)), Dense(pool), Dense(pool.flip(0))),
        "chain": Chain((Dense(gauss(4, 6)), Scale(gauss(4)), Dense(gauss(3, 4, seed=1)))),
        "sum": Sum((Dense(gauss(3, 4)), Dense(gauss(3, 4, seed=1)))),
    }


@pytest.mark.parametrize("kind", maps())
def test_a_map_is_its_matrix(kind: str) -> None:
    part = maps()[kind]
    matrix = part.matrix()
    assert matrix.shape == (part.outputs, part.inputs)
    h, a = gauss(3, part.inputs, seed=2), gauss(3, part.outputs, seed=3)
    torch.testing.assert_close(part.forward(h), h @ matrix.T)
    torch.testing.assert_close(part.transpose(a), a @ matrix)
    assert bool((part.absolute().matrix() >= matrix.abs() * (1 - 1e-15)).all())
    assert (part.sparse().toarray() == matrix.numpy()).all()
    fast = part.to(torch.float32)
    assert fast.forward(h.float()).dtype == torch.float32
    torch.testing.assert_close(fast.forward(h.float()), part.forward(h).float())


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [5, 6, 7, 8])
def test_large_convolutions_are_transposed_with_what_the_stride_leaves_over(stride: int, size: int) -> None:
    kernel = gauss(3, 2, 3, 2)
    after = functional.conv2d(torch.zeros(1, 2, size, size).double(), kernel, None, stride, 1).shape[1:]
    part = Convolution(kernel, (2, size, size), tuple(after), (stride, stride), (1, 1))
    torch.testing.assert_close(part.transpose(torch.eye(part.outputs).double()), part.matrix())
    torch.testing.assert_close(part.forward(torch.eye(part.inputs).double()).T, part.matrix())


def test_stored_entries_that_were_rounded_say_how_far_off_they_are() -> None:
    thirds = Dense(torch.ones(1, 2, dtype=torch.float64) / 3, entry_roundings=1)
    assert bool((thirds.error > 0).all()) and bool((thirds.entries > thirds.weight).all())
    assert not bool(Dense(thirds.weight).error.any())
    assert thirds.roundings == Dense(thirds.weight).roundings + 1
