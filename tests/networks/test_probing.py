"""Maps from functions: the function itself, or a refusal of what is not linear."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from certbench import UnsupportedError
from certbench.networks.maps import Dense
from certbench.networks.probing import linear_map, selection
from certbench.networks.structured_maps import Sparse
from tests.support.linear import gauss, is_its_matrix

Function = Callable[[Tensor], Tensor]

VIEWS: dict[str, tuple[Function, tuple[int, ...]]] = {
    "slice": (lambda x: x[1:, ::2], (3, 5)),
    "permute": (lambda x: x.permute(2, 0, 1), (2, 3, 4)),
    "expand": (lambda x: x[:, None].expand(3, 4, 2), (3, 2)),
    "flip": (lambda x: x.flip(0), (3, 2)),
    "roll": (lambda x: x.roll((1, 2), (0, 1)), (3, 4)),
    "gather": (lambda x: x[torch.tensor([0, 2, 2])], (3, 4)),
    "stack": (lambda x: torch.stack([x, x.flip(0)]), (3, 2)),
    "split": (lambda x: x.split(2)[1], (4, 3)),
    "shuffle": (nn.PixelShuffle(2), (8, 2, 3)),
    "unshuffle": (nn.PixelUnshuffle(2), (2, 4, 6)),
    "channels": (lambda x: functional.channel_shuffle(x[None], 2)[0], (4, 3, 2)),
    "nearest": (lambda x: functional.interpolate(x[None], scale_factor=(2, 3), mode="nearest")[0], (2, 3, 2)),
    "nearest smaller": (lambda x: functional.interpolate(x[None], size=(2, 2), mode="nearest")[0], (2, 5, 3)),
    "zeros": (lambda x: functional.pad(x, (1, 2, 0, 1)), (2, 3, 4)),
    "crop": (lambda x: functional.pad(x, (-1, 2)), (2, 3)),
    "reflect": (lambda x: functional.pad(x, (1, 2, 2, 1), mode="reflect"), (2, 3, 4)),
    "replicate": (lambda x: functional.pad(x, (1, 2, 0, 3), mode="replicate"), (2, 3, 4)),
    "circular": (lambda x: functional.pad(x, (1, 2, 0, 3), mode="circular"), (2, 3, 4)),
    "unfold": (lambda x: functional.unfold(x[None], (2, 2), padding=1)[0], (2, 3, 3)),
    "triangle": (lambda x: x.tril(), (3, 3)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_are_selections(name: str) -> None:
    apply, before = VIEWS[name]
    part = selection(apply, before)
    x = gauss(*before)
    assert part.shape == apply(x).shape
    assert torch.equal(part.forward(x.reshape(1, -1))[0], apply(x).flatten())
    is_its_matrix(part)
    assert torch.equal(part.matrix(), linear_map(apply, before, part.shape).matrix())


@pytest.mark.parametrize(
    "apply",
    [
        lambda x: 2 * x,
        lambda x: x + 1,
        lambda x: -x,
        lambda x: x.relu(),
        lambda x: x.sort(dim=0).values,
        lambda x: functional.pad(x, (1, 1), value=1.0),
        lambda x: functional.pad(x, (1, 1), value=0.5),
        lambda x: torch.full_like(x, torch.nan),
        lambda x: x.sum(0),
        lambda x: x.double().float().double(),
    ],
)
def test_what_is_no_selection_is_refused(apply: Function) -> None:
    with pytest.raises(UnsupportedError, match=r"outputs that are neither|picks other inputs"):
        selection(apply, (3, 4))


def bilinear(corners: bool, *size: int) -> Function:
    return lambda x: functional.interpolate(x[None], size=size, mode="bilinear", align_corners=corners)[0]


KERNEL, WEIGHT = gauss(2, 2, 2, 2, 2), gauss(3, 4)

LINEAR: dict[str, tuple[Function, tuple[int, ...]]] = {
    "average, unequal": (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (2, 6, 5)),
    "average, padded": (nn.AvgPool2d(3, 2, 1), (2, 6, 5)),
    "average 1d": (nn.AvgPool1d(3, 2), (2, 9)),
    "average 3d": (nn.AvgPool3d(2, 1), (2, 3, 3, 4)),
    "adaptive": (nn.AdaptiveAvgPool2d((3, 2)), (2, 7, 5)),
    "adaptive 1d": (nn.AdaptiveAvgPool1d(3), (2, 7)),
    "mean": (lambda x: x.mean((1, 2)), (3, 4, 5)),
    "sum": (lambda x: x.sum(1, keepdim=True), (3, 4, 5)),
    "cumsum": (lambda x: x.cumsum(0), (5, 3)),
    "bilinear": (bilinear(False, 7, 6), (2, 3, 4)),
    "bilinear, corners": (bilinear(True, 7, 6), (2, 3, 4)),
    "bilinear, smaller": (bilinear(False, 2, 3), (2, 5, 4)),
    "bicubic": (lambda x: functional.interpolate(x[None], size=(5, 5), mode="bicubic")[0], (2, 3, 3)),
    "linear": (lambda x: functional.interpolate(x[None], size=7, mode="linear")[0], (2, 3)),
    "conv3d": (lambda x: functional.conv3d(x[None], KERNEL)[0], (2, 3, 3, 3)),
    "einsum": (lambda x: torch.einsum("ij,jkl->ikl", WEIGHT, x), (4, 2, 3)),
    "fold": (lambda x: functional.fold(x[None], (3, 3), (2, 2))[0], (8, 4)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_functions_are_maps(name: str) -> None:
    apply, before = LINEAR[name]
    x = gauss(*before)
    part = linear_map(apply, before, tuple(apply(x).shape), 2)
    torch.testing.assert_close(part.forward(x.reshape(1, -1))[0], apply(x).flatten())
    assert part.shape == apply(x).shape and isinstance(part, Dense | Sparse) and part.entry_roundings == 2
    is_its_matrix(part)


def test_channels_that_are_treated_alike_need_one_of_them() -> None:
    apply, before = LINEAR["average, unequal"]
    after = tuple(apply(gauss(*before)).shape)
    one = linear_map(lambda x: apply(x[None])[0], before[1:], after[1:], 1, channels=before[0])
    whole = linear_map(apply, before, after, 1)
    assert one.shape == whole.shape and torch.equal(one.matrix(), whole.matrix())


def test_many_features_are_probed_in_parts() -> None:
    pool = nn.AvgPool2d(2)
    part = linear_map(pool, (3, 64, 64), (3, 32, 32))
    assert isinstance(part, Sparse) and part.roundings == 5 and part.transposed_roundings == 2
    x = gauss(2, 3, 64, 64)
    torch.testing.assert_close(part.forward(x.flatten(1)), pool(x).flatten(1))


@pytest.mark.parametrize(
    "apply",
    [
        lambda x: x + 1e-200,
        lambda x: x.abs(),
        lambda x: x.relu(),
        lambda x: x.clamp(-1, 1),
        lambda x: x * x.sum(),
        lambda x: x.amax(1, keepdim=True).expand(3, 4),
        lambda x: x / 0.0,
        lambda x: torch.full_like(x, torch.nan),
        lambda x: x.round(),
        lambda x: x + 1e-6 * x.abs(),
    ],
)
def test_what_is_not_linear_is_refused(apply: Function) -> None:
    with pytest.raises(UnsupportedError, match="is not linear"):
        linear_map(apply, (3, 4), (3, 4))


def test_another_shape_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"shape \(3,\) instead of \(4,\)"):
        linear_map(lambda x: x.sum(1), (3, 4), (4,))
